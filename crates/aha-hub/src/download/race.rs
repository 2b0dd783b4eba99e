//! Finds the faster hub: both list the files and send the beginning of the largest one; the first
//! to have done both wins.

use std::io::Read;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::HttpClient;
use crate::hubs::{Hub, Listing};
use crate::{CancelToken, FileFilter, HubError, ModelId, RetryPolicy, Revision, Source};

/// How much of a file tells the speed of a line.
const SAMPLE_BYTES: u64 = 1 << 20;
/// A slower line is slow enough to be known as such.
const SAMPLE_TIME: Duration = Duration::from_secs(3);

/// What came out.
pub(super) struct Outcome {
    pub(super) winner: Option<(Source, Listing)>,
    /// Who failed before the winner arrived.
    pub(super) failures: Vec<(Source, HubError)>,
}

/// Asks all hubs at once. Does not wait for the slower one.
pub(super) fn race(
    entrants: Vec<(Hub, ModelId)>,
    http: &Arc<HttpClient>,
    revision: &Revision,
    filter: &FileFilter,
    retry: &RetryPolicy,
    cancel: &CancelToken,
) -> Outcome {
    let (results, arrivals) = mpsc::channel();
    let over = cancel.child();
    for (hub, repo) in entrants {
        let (results, over, http) = (results.clone(), over.clone(), Arc::clone(http));
        let (revision, filter, retry) = (revision.clone(), filter.clone(), *retry);
        // Not scoped: a hub that hangs must not hold up the one that answers.
        thread::spawn(move || {
            let result = run(&hub, &repo, &http, &revision, &filter, &retry, &over);
            // Nobody listens any more when the race is over.
            let _ = results.send((hub.source, result));
        });
    }
    drop(results);
    let mut failures = Vec::new();
    for (source, result) in arrivals {
        match result {
            Ok(listing) => {
                over.cancel();
                return Outcome {
                    winner: Some((source, listing)),
                    failures,
                };
            }
            Err(error) => failures.push((source, error)),
        }
    }
    Outcome {
        winner: None,
        failures,
    }
}

fn run(
    hub: &Hub,
    repo: &ModelId,
    http: &HttpClient,
    revision: &Revision,
    filter: &FileFilter,
    retry: &RetryPolicy,
    over: &CancelToken,
) -> Result<Listing, HubError> {
    let listing = retry.run(over, || hub.list(http, repo, revision))?;
    let wanted = filter.select(&listing)?;
    if let Some(largest) = wanted.iter().max_by_key(|file| file.size) {
        let url = hub.file_url(&listing, &largest.path);
        retry.run(over, || sample(hub, http, &url, over))?;
    }
    Ok(listing)
}

fn sample(hub: &Hub, http: &HttpClient, url: &str, over: &CancelToken) -> Result<(), HubError> {
    let reply = http.get(hub.source, url, hub.token(), 0)?.success()?;
    let start = Instant::now();
    let mut body = reply.body.take(SAMPLE_BYTES);
    let mut block = vec![0; 64 << 10];
    loop {
        over.check()?;
        let count = body.read(&mut block).map_err(|error| HubError::Network {
            url: reply.url.clone(),
            reason: error.to_string(),
        })?;
        if count == 0 || start.elapsed() > SAMPLE_TIME {
            return Ok(());
        }
    }
}
