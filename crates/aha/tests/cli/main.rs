//! The `aha` binary, from outside: what it prints, where, and with which exit status.

mod conversation;
mod help;
mod models;
mod running;
mod server;
mod support;
