//! Ctrl-C and SIGTERM, on every platform, in one place.
//!
//! A command that can stop politely takes a [`Guard`]: it is told of the first signal. Without a
//! guard, and for any further signal, the process ends at once.

use super::failure::{Failure, Outcome};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, or the closing of a console on Windows.
    Terminate,
}

impl Signal {
    /// 128 and the signal's number, as shells report it.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Listens for as long as the runtime lives.
#[derive(Debug, Clone)]
pub(crate) struct Signals(Arc<Mutex<Option<oneshot::Sender<Signal>>>>);

impl Signals {
    /// Takes the signals over from the system's defaults.
    pub(crate) fn install(runtime: &Runtime) -> Outcome<Self> {
        let signals = Self(Arc::default());
        let _context = runtime.enter();
        let mut source = Source::new()
            .map_err(|error| Failure::message(format!("cannot listen for signals: {error}")))?;
        let told = signals.clone();
        runtime.spawn(async move {
            loop {
                let signal = source.next().await;
                let guard = told.slot().take();
                let heard = guard.is_some_and(|guard| guard.send(signal).is_ok());
                if !heard {
                    std::process::exit(signal.exit_code().into());
                }
            }
        });
        Ok(signals)
    }

    /// Announces the next signal instead of ending the process, until the guard is dropped.
    pub(crate) fn guard(&self) -> Guard {
        let (sender, receiver) = oneshot::channel();
        *self.slot() = Some(sender);
        Guard {
            signals: self.clone(),
            receiver,
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<oneshot::Sender<Signal>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to be told of the first signal.
#[derive(Debug)]
pub(crate) struct Guard {
    signals: Signals,
    receiver: oneshot::Receiver<Signal>,
}

impl Guard {
    /// Resolves at the first signal; to be asked once.
    pub(crate) async fn signalled(&mut self) -> Signal {
        match (&mut self.receiver).await {
            Ok(signal) => signal,
            // Another guard took the place of this one: its holder is told.
            Err(_) => std::future::pending().await,
        }
    }

    /// The first signal, if it came already: for those who wait for something else.
    pub(crate) fn heard(&mut self) -> Option<Signal> {
        self.receiver.try_recv().ok()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signals.slot().take();
    }
}

#[cfg(unix)]
struct Source {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Source {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

#[cfg(windows)]
struct Source {
    interrupt: tokio::signal::windows::CtrlC,
    close: tokio::signal::windows::CtrlClose,
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(windows)]
impl Source {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::windows::{ctrl_c, ctrl_close, ctrl_shutdown};
        Ok(Self {
            interrupt: ctrl_c()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.close.recv() => Signal::Terminate,
            _ = self.shutdown.recv() => Signal::Terminate,
        }
    }
}
