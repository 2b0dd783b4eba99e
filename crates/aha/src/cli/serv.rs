//! `aha serv` and `aha cli`: the HTTP server.

use super::Context;
use super::args::{EngineArgs, ModelArgs};
use super::download::{DownloadArgs, provide};
use super::failure::{Failure, Outcome};
use super::units::{parse_bytes, parse_seconds, positive};
use aha::hub::{HubConfig, RunGuard, Store};
use aha::{Checkpoint, EngineOptions, Loader, Model};
use aha_media::source::{HostPattern, SourcePolicy};
use aha_server::{BoundServer, DEFAULT_PORT, MediaOptions, ServedModel, ServerOptions, Shutdown};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

const SERV_HELP: &str = "\
The server answers /v1/chat/completions, /v1/completions, /v1/models, /health and more, with and
without /v1. It answers /health with 503 until the model is loaded. Ctrl-C or SIGTERM lets running
answers finish within the grace time; the second one ends it at once.

Examples:
  aha serv -m Qwen/Qwen3-0.6B
  aha serv -m my-model --weight-path ./checkpoint -p 8080
  AHA_API_KEY=secret aha serv --gguf-path model.gguf -a 0.0.0.0
  curl http://127.0.0.1:10100/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}], \"stream\": true}'";

const CLI_HELP: &str = "\
Examples:
  aha cli -m Qwen/Qwen3-0.6B
  aha cli -m qwen3-4b --source huggingface -p 8080";

/// `aha serv`.
#[derive(Debug, Args)]
#[command(after_help = SERV_HELP)]
pub(crate) struct Serv {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    sources: SourceArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    batch: BatchArgs,
}

/// `aha cli`.
#[derive(Debug, Args)]
#[command(after_help = CLI_HELP)]
pub(crate) struct DownloadAndServe {
    #[command(flatten)]
    serv: Serv,
    #[command(flatten)]
    download: DownloadArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
struct ServerArgs {
    /// Address or host name to listen on
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: String,
    /// Port to listen on; 0 takes a free one
    #[arg(short, long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Key that clients must send; may be repeated. Needed beyond loopback
    #[arg(long, value_name = "KEY", env = "AHA_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// Listen beyond loopback without a key
    #[arg(long)]
    insecure: bool,
    /// Origin whose pages may call the server, or *; may be repeated [default: none]
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Host name that requests may be addressed to besides loopback ones; may be repeated
    #[arg(long, value_name = "HOST")]
    allowed_host: Vec<String>,
    /// Largest request body
    #[arg(long, value_name = "BYTES", default_value = "32M", value_parser = parse_bytes)]
    body_limit: usize,
    /// Longest time for an answer in seconds; 0 is without end
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_seconds, allow_negative_numbers = true)]
    request_timeout: Duration,
    /// Time for running answers when the server is told to stop, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds, allow_negative_numbers = true)]
    shutdown_grace: Duration,
    /// Let other machines call POST /shutdown (with the key)
    #[arg(long)]
    allow_remote_shutdown: bool,
    /// Connections held at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    max_connections: usize,
}

/// What pictures, clips and recordings a request may name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures, clips and recordings")]
struct SourceArgs {
    /// Folder whose files requests may name as file:// URLs [default: none]
    #[arg(long, value_name = "DIR", value_parser = folder)]
    media_root: Option<PathBuf>,
    /// Host (host, host:port, *.domain) that may be fetched from although its address is private; may be repeated
    #[arg(long, value_name = "HOST")]
    allow_media_host: Vec<HostPattern>,
    /// Fetch from no other hosts
    #[arg(long)]
    only_allowed_media_hosts: bool,
    /// Largest picture
    #[arg(long, value_name = "BYTES", default_value = "32M", value_parser = parse_bytes)]
    max_image_bytes: usize,
    /// Most pixels of a picture (K, M and G are powers of 1024)
    #[arg(long, value_name = "PIXELS", default_value = "64M", value_parser = parse_bytes)]
    max_image_pixels: usize,
    /// Pictures, clips and recordings of one request
    #[arg(long, value_name = "N", default_value_t = MediaOptions::default().max_items, value_parser = positive)]
    max_media: usize,
}

impl SourceArgs {
    fn options(&self) -> MediaOptions {
        let mut options = MediaOptions {
            policy: SourcePolicy {
                media_root: self.media_root.clone(),
                allowed_hosts: self.allow_media_host.clone(),
                only_allowed_hosts: self.only_allowed_media_hosts,
            },
            max_items: self.max_media,
            ..MediaOptions::default()
        };
        options.limits.max_bytes = self.max_image_bytes as u64;
        options.limits.max_pixels = self.max_image_pixels as u64;
        options
    }
}

fn folder(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_dir() {
        Ok(path)
    } else {
        Err("there is no such folder".to_owned())
    }
}

impl ServerArgs {
    fn options(&self, context: &Context, media: MediaOptions) -> ServerOptions {
        ServerOptions {
            media,
            voices: voices(context),
            address: self.address.clone(),
            port: self.port,
            api_keys: self.api_key.clone(),
            insecure: self.insecure,
            allow_remote_shutdown: self.allow_remote_shutdown,
            cors_origins: self.cors_origin.clone(),
            allowed_hosts: self.allowed_host.clone(),
            body_limit: self.body_limit,
            request_timeout: Some(self.request_timeout).filter(|time| !time.is_zero()),
            shutdown_grace: self.shutdown_grace,
            max_connections: self.max_connections,
            ..ServerOptions::default()
        }
    }
}

/// How many requests the engine takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
struct BatchArgs {
    /// Requests that run at once
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_sequences, value_parser = positive)]
    max_sequences: usize,
    /// Tokens that one step computes at most
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_batch_tokens, value_parser = positive)]
    max_batch_tokens: usize,
    /// Requests that may wait; more get 429
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().queue_limit, value_parser = positive)]
    queue_limit: usize,
    /// Compute every prompt anew, even if it begins like an earlier one
    #[arg(long)]
    no_prefix_cache: bool,
}

impl DownloadAndServe {
    pub(crate) fn execute(mut self, context: &Context) -> Outcome {
        provide(&mut self.serv.model, &self.download, context)?;
        self.serv.execute(context)
    }
}

impl Serv {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let (loader, bar) = context.loader(&self.model)?;
        let options = EngineOptions {
            max_sequences: self.batch.max_sequences,
            max_batch_tokens: self.batch.max_batch_tokens,
            queue_limit: self.batch.queue_limit,
            prefix_cache: !self.batch.no_prefix_cache,
            ..self.engine.options()
        };
        let loader = loader.engine_options(options);
        // A name that leads nowhere must fail before anybody connects.
        let checkpoint = loader.locate()?;
        let task = loader.family()?.task;
        let served = ServedModel::new(
            checkpoint.name.as_str(),
            self.aliases(&checkpoint),
            task.name(),
        );
        context.runtime.block_on(async {
            let shutdown = Shutdown::default();
            let server =
                aha_server::bind(self.server.options(context, self.sources.options()), vec![served.clone()], shutdown.clone())
                    .await?;
            let _run_file = register(&server, served.id());
            tracing::info!("listening on {}", server.url());
            let mut serving = tokio::spawn(server.serve());
            let mut loading = tokio::task::spawn_blocking(move || load(loader));
            let mut guard = context.signals.guard();
            let mut stopping = false;
            let mut loaded = false;
            loop {
                tokio::select! {
                    ended = &mut serving => {
                        return match ended {
                            Ok(outcome) => Ok(outcome?),
                            Err(error) => Err(Failure::message(format!("the server failed: {error}"))),
                        };
                    }
                    signal = guard.signalled(), if !stopping => {
                        tracing::info!("{signal:?}: stopping; the next signal ends at once");
                        stopping = true;
                        shutdown.request();
                    }
                    model = &mut loading, if !loaded => {
                        loaded = true;
                        bar.finish();
                        match model {
                            Ok(Ok(model)) => {
                                served.ready(model.service().clone());
                                tracing::info!("ready: {} on {}", served.id(), model.path().display());
                            }
                            Ok(Err(failure)) => return Err(failure),
                            Err(error) => {
                                return Err(Failure::message(format!("cannot load the model: {error}")));
                            }
                        }
                    }
                }
            }
        })
    }

    /// Every other name by which requests may call the model.
    fn aliases(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let release = checkpoint.release;
        let known = release.into_iter().flat_map(|release| {
            [
                release.id.to_owned(),
                release.alias.to_owned(),
                release.modelscope.to_owned(),
            ]
        });
        known
            .chain(self.model.place.model.clone())
            .filter(|name| *name != checkpoint.name)
            .collect()
    }
}

fn load(loader: Loader) -> Outcome<Model> {
    Ok(loader.build()?)
}

/// Where voices are kept. A home that is not known is no reason not to serve.
fn voices(context: &Context) -> Option<PathBuf> {
    let config = context.global.hub_config().ok()?;
    Store::open(None, &config).ok().map(|store| store.voices())
}

/// Notes the server for `aha ps`. A home that cannot be written is no reason not to serve.
fn register(server: &BoundServer, model: &str) -> Option<RunGuard> {
    let address = server.local_addr();
    let noted = HubConfig::from_env().and_then(|config| {
        let store = Store::open(None, &config)?;
        store.register_server(&address.ip().to_string(), address.port(), model)
    });
    noted
        .inspect_err(|error| tracing::warn!("`aha ps` will not show this server: {error}"))
        .ok()
}
