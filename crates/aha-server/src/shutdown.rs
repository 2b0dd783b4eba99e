//! The way down: drain, cut, close.

use tokio::sync::watch;

/// How far a server is on its way down. The order matters: it only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are taken.
    Running,
    /// No new connections; running answers go on.
    Draining,
    /// The grace time is over: running answers end with an error.
    Cutting,
    /// Connections are closed as they are.
    Closing,
}

/// Asks a server to stop; cheap to clone, usable from any thread.
///
/// The first [`Shutdown::request`] lets running answers finish within the grace time, the second
/// closes everything at once.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Sender<Phase>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }
}

impl Shutdown {
    /// Stops the server: gracefully the first time, at once the second.
    pub fn request(&self) {
        let next = match self.phase() {
            Phase::Running => Phase::Draining,
            _ => Phase::Closing,
        };
        self.advance(next);
    }

    /// Whether the server was asked to stop.
    pub fn is_requested(&self) -> bool {
        self.phase() > Phase::Running
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Moves on to `phase`, never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let moves = phase > *current;
            if moves {
                *current = phase;
            }
            moves
        });
    }

    /// Resolves once the server is at `phase` or beyond.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let _ = receiver.wait_for(|current| *current >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_drain_first_and_close_second() {
        let shutdown = Shutdown::default();
        assert!(!shutdown.is_requested());
        shutdown.request();
        assert_eq!(shutdown.phase(), Phase::Draining);
        shutdown.reached(Phase::Draining).await;
        shutdown.request();
        assert_eq!(shutdown.phase(), Phase::Closing);
        shutdown.advance(Phase::Cutting);
        assert_eq!(shutdown.phase(), Phase::Closing);
    }
}
