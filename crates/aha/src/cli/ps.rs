//! `aha ps`: the servers of this machine.

use super::Context;
use super::console;
use super::failure::Outcome;
use super::markdown::columns;
use super::units::{bytes, span};
use aha::hub::{RunFile, Store};
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  aha ps\n  aha ps --json | jq '.[].port'")]
pub(crate) struct Ps {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Running<'a> {
    pid: u32,
    address: &'a str,
    port: u16,
    model: &'a str,
    uptime_seconds: u64,
    memory_bytes: Option<u64>,
}

impl Ps {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let servers = Store::open(None, &context.global.hub_config()?)?.running_servers()?;
        if self.json {
            let running: Vec<_> = servers.iter().map(describe).collect();
            return console::print_json(&running);
        }
        let rows: Vec<_> = servers.iter().map(row).collect();
        console::print(&columns(
            &["PID", "ADDRESS", "PORT", "MODEL", "UPTIME", "MEMORY"],
            &rows,
        ))
    }
}

fn describe(server: &RunFile) -> Running<'_> {
    Running {
        pid: server.pid,
        address: &server.address,
        port: server.port,
        model: &server.model,
        uptime_seconds: server.uptime().as_secs(),
        memory_bytes: server.memory(),
    }
}

fn row(server: &RunFile) -> Vec<String> {
    vec![
        server.pid.to_string(),
        server.address.clone(),
        server.port.to_string(),
        server.model.clone(),
        span(server.uptime()),
        server.memory().map_or_else(|| "-".to_owned(), bytes),
    ]
}
