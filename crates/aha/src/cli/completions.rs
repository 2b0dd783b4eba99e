//! `aha completions`: scripts for shells, generated from the definition of the commands.

use super::console;
use super::failure::Outcome;
use clap::{Args, Command};
use clap_complete::Shell;

const AFTER_HELP: &str = "\
Examples:
  aha completions bash > ~/.local/share/bash-completion/completions/aha
  aha completions zsh > ~/.zfunc/_aha
  aha completions fish > ~/.config/fish/completions/aha.fish";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn execute(&self, command: &mut Command) -> Outcome {
        // Into memory first: a pipe that closes early must not panic.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "aha", &mut script);
        console::print(&String::from_utf8_lossy(&script))
    }
}
