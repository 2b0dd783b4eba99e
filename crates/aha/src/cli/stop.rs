//! `aha stop`: ends servers of this machine.

use super::Context;
use super::console;
use super::failure::{Failure, Outcome};
use super::units::parse_seconds;
use aha::hub::{RunFile, Store};
use clap::Args;
use std::time::{Duration, Instant};

const AFTER_HELP: &str = "\
Running answers may finish, as after Ctrl-C.

Examples:
  aha stop                 the only server of this machine
  aha stop --port 10100
  aha stop --all";

/// Between two looks at a server that is about to end.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Stop {
    /// The server on this port
    #[arg(short, long, value_name = "PORT", conflicts_with_all = ["pid", "all"])]
    port: Option<u16>,
    /// The server with this process id
    #[arg(long, value_name = "PID", conflicts_with = "all")]
    pid: Option<u32>,
    /// Every server
    #[arg(long)]
    all: bool,
    /// How long to wait for the end, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds, allow_negative_numbers = true)]
    wait: Duration,
}

impl Stop {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let running = Store::open(None, &context.global.hub_config()?)?.running_servers()?;
        let chosen = self.choose(running)?;
        for server in &chosen {
            if server.is_alive() && !server.terminate() {
                return Err(Failure::message(format!(
                    "cannot stop the server: pid {}: the system does not allow it",
                    server.pid
                )));
            }
        }
        let deadline = Instant::now() + self.wait;
        for server in &chosen {
            while server.is_alive() {
                if Instant::now() >= deadline {
                    return Err(Failure::message(format!(
                        "the server has not stopped yet: pid {}: it may still be answering",
                        server.pid
                    )));
                }
                std::thread::sleep(POLL);
            }
            console::print(&format!(
                "stopped {} on port {}\n",
                server.model, server.port
            ))?;
        }
        Ok(())
    }

    fn choose(&self, running: Vec<RunFile>) -> Outcome<Vec<RunFile>> {
        let selected = |server: &RunFile| {
            self.port.is_none_or(|port| server.port == port)
                && self.pid.is_none_or(|pid| server.pid == pid)
        };
        let chosen: Vec<RunFile> = running.into_iter().filter(selected).collect();
        let named = self.port.is_some() || self.pid.is_some() || self.all;
        match chosen.len() {
            0 if self.all => Ok(chosen),
            0 => Err(Failure::message(
                "cannot stop the server: none such is running; see `aha ps`",
            )),
            1 => Ok(chosen),
            _ if named => Ok(chosen),
            several => Err(Failure::usage(format!(
                "{several} servers are running: choose one with --port or --pid, or take --all"
            ))),
        }
    }
}
