//! The HTTP face of aha: OpenAI's routes over the engine.
//!
//! A server binds at once and answers `/live` and `/health` while its models load; each
//! [`ServedModel`] moves from loading to ready (or failed) on its own.
//!
//! ```no_run
//! # async fn run(engine: aha_engine::Engine) -> Result<(), aha_server::ServerError> {
//! use aha_server::{ServedModel, ServerOptions, Service, Shutdown};
//!
//! let model = ServedModel::new("Qwen/Qwen3-0.6B", ["qwen3-0.6b".to_owned()], "chat");
//! let shutdown = Shutdown::default();
//! let server = aha_server::bind(ServerOptions::default(), vec![model.clone()], shutdown).await?;
//! println!("listening on {}", server.url());
//! // Wherever the weights are read, perhaps on another thread:
//! model.ready(Service::Text(engine));
//! server.serve().await
//! # }
//! ```

mod answer;
mod archive;
mod auth;
mod connection;
mod context;
mod error;
mod ids;
mod limits;
mod media;
mod metrics;
mod model;
mod multipart;
mod options;
mod replay;
mod router;
mod routes;
mod server;
mod shutdown;
mod sse;
mod state;
mod types;

pub use aha_engine::Service;
pub use media::{FetchError, FetchLimits, Fetcher};
pub use model::{ModelState, ServedModel};
pub use options::{DEFAULT_PORT, MediaOptions, ServerOptions};
pub use replay::chat_generation;
pub use router::router;
pub use server::{BoundServer, ServerError, bind};
pub use shutdown::Shutdown;
