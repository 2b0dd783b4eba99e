//! The `aha` command.

mod cli;

use std::process::ExitCode;

/// Tensors of a few megabytes come and go with every operation. The system's allocator gives their pages
/// back each time and takes them again, cleared, which costs a prompt a sixth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
