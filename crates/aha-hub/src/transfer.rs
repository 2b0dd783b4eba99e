//! Brings one file to disk: asks, resumes, checks, retries.

use std::path::Path;
use std::time::{Duration, Instant};

use ureq::http::header;

use crate::http::{HttpClient, Reply};
use crate::hubs::{Hub, Listing, RemoteFile, clean_sha256};
use crate::manifest::FileRecord;
use crate::part::{Identity, PartFile, hash_file};
use crate::{CancelToken, Event, HubError, Progress};

const BLOCK: usize = 256 << 10;
/// Progress of a file is told at most this often.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How often and how long to try again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Failures in a row, without a new byte between them, that end the download.
    pub attempts: u32,
    /// The first wait; each further one is twice as long.
    pub base_delay: Duration,
    /// The longest wait, also for a hub's `Retry-After`: one that asks for more fails at once.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(120),
        }
    }
}

impl RetryPolicy {
    /// The wait before the next try, or `None` when it is time to give up.
    fn wait(&self, failures: u32, error: &HubError) -> Option<Duration> {
        if failures >= self.attempts || !error.is_transient() {
            return None;
        }
        let doubled = self.base_delay * 2u32.saturating_pow(failures.saturating_sub(1).min(16));
        match error.retry_after() {
            Some(asked) => (asked <= self.max_delay).then_some(asked),
            None => Some(doubled.min(self.max_delay)),
        }
    }

    /// Repeats `request` while its error is transient.
    pub(crate) fn run<T>(
        &self,
        cancel: &CancelToken,
        mut request: impl FnMut() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            cancel.check()?;
            let error = match request() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            let Some(wait) = self.wait(failures, &error) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "the request is repeated");
            pause(wait, cancel)?;
        }
    }
}

/// Sleeps in short steps, so that a cancellation is seen soon.
fn pause(wait: Duration, cancel: &CancelToken) -> Result<(), HubError> {
    let end = Instant::now() + wait;
    loop {
        cancel.check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// What all files of a download share.
pub(crate) struct Transfer<'a> {
    pub(crate) http: &'a HttpClient,
    pub(crate) hub: &'a Hub,
    pub(crate) listing: &'a Listing,
    pub(crate) model_dir: &'a Path,
    pub(crate) retry: &'a RetryPolicy,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancelToken,
}

impl Transfer<'_> {
    /// Downloads `remote` to its place. Returns its record and the bytes that came over the
    /// network.
    pub(crate) fn fetch(&self, remote: &RemoteFile) -> Result<(FileRecord, u64), HubError> {
        if let Some(record) = self.adopt(remote)? {
            return Ok((record, 0));
        }
        let mut part = PartFile::open(self.model_dir, remote, self.cancel)?;
        self.progress.event(&Event::FileStarted {
            path: remote.path.clone(),
            size: remote.size,
            resumed_from: part.len(),
        });
        let mut received = 0;
        let mut furthest = part.len();
        let mut failures = 0;
        let mut mismatched = false;
        loop {
            let error = match self.attempt(remote, &mut part, &mut received) {
                Ok(()) => match self.check(remote, &part) {
                    Ok(()) => break,
                    // The fault may lie in what an earlier run left: one fresh try.
                    Err(error) if !mismatched => {
                        mismatched = true;
                        self.restart(remote, &mut part, &error.to_string())?;
                        furthest = 0;
                        continue;
                    }
                    Err(error) => {
                        part.restart()?;
                        return Err(error);
                    }
                },
                Err(error) => error,
            };
            if part.len() > furthest {
                furthest = part.len();
                failures = 0;
            }
            failures += 1;
            let Some(wait) = self.retry.wait(failures, &error) else {
                return Err(error);
            };
            self.progress.event(&Event::FileRetry {
                path: remote.path.clone(),
                attempt: failures,
                wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                reason: error.to_string(),
            });
            pause(wait, self.cancel)?;
        }
        let identity = part.identity();
        let verified = remote.sha256.is_some() || identity.is_some_and(|i| i.sha256.is_some());
        let record = FileRecord {
            size: part.len(),
            sha256: part.sha256(),
            verified,
            source: self.hub.source,
            object_id: remote.object_id.clone(),
        };
        part.commit(&self.model_dir.join(&remote.path))?;
        self.progress.event(&Event::FileFinished {
            path: remote.path.clone(),
            size: record.size,
            verified,
        });
        Ok((record, received))
    }

    /// Takes a file that somebody else put in place, if it has the hub's checksum.
    fn adopt(&self, remote: &RemoteFile) -> Result<Option<FileRecord>, HubError> {
        if !may_adopt(self.model_dir, remote) {
            return Ok(None);
        }
        let target = self.model_dir.join(&remote.path);
        let (sha256, size) =
            hash_file(&target).map_err(|error| HubError::io("read", &target, error))?;
        if remote.sha256.as_ref() != Some(&sha256) {
            return Ok(None);
        }
        self.progress.event(&Event::FileFinished {
            path: remote.path.clone(),
            size,
            verified: true,
        });
        Ok(Some(FileRecord {
            size,
            sha256,
            verified: true,
            source: self.hub.source,
            object_id: remote.object_id.clone(),
        }))
    }

    fn restart(
        &self,
        remote: &RemoteFile,
        part: &mut PartFile,
        reason: &str,
    ) -> Result<(), HubError> {
        if part.len() > 0 {
            self.progress.event(&Event::FileRestarted {
                path: remote.path.clone(),
                reason: reason.to_owned(),
            });
        }
        part.restart()
    }

    /// Holds the whole file against what the hub promised.
    fn check(&self, remote: &RemoteFile, part: &PartFile) -> Result<(), HubError> {
        let linked = part
            .identity()
            .and_then(|identity| identity.sha256.as_ref());
        let Some(expected) = remote.sha256.as_ref().or(linked) else {
            return Ok(());
        };
        let actual = part.sha256();
        if actual == *expected {
            return Ok(());
        }
        Err(HubError::ChecksumMismatch {
            path: remote.path.clone(),
            expected: expected.clone(),
            actual,
        })
    }

    /// One request, or two when the first shows that the partial file is of other content.
    fn attempt(
        &self,
        remote: &RemoteFile,
        part: &mut PartFile,
        received: &mut u64,
    ) -> Result<(), HubError> {
        let url = self.hub.file_url(self.listing, &remote.path);
        loop {
            self.cancel.check()?;
            if remote.size == Some(part.len()) && part.len() > 0 {
                if remote.sha256.is_some() {
                    return Ok(());
                }
                // Whole but without a checksum to prove it: ask again.
                self.restart(remote, part, "the hub gives no checksum to prove the bytes")?;
            }
            let from = part.len();
            let reply = self
                .http
                .get(self.hub.source, &url, self.hub.token(), from)?;
            if reply.status.as_u16() == 416 && from > 0 {
                self.restart(remote, part, "the hub refused to resume")?;
                continue;
            }
            let reply = reply.success()?;
            let total = self.check_reply(remote, &reply)?;
            let identity = self.identify(remote, &reply)?;
            let start = content_range(&reply).map(|range| range.0);
            match (reply.status.as_u16(), start) {
                (206, Some(start)) if start == from => {
                    let same = part.identity().is_some_and(|old| old.continues(&identity));
                    if from > 0 && !same {
                        self.restart(remote, part, "the file changed on the hub")?;
                        continue;
                    }
                }
                (206, _) => {
                    self.restart(remote, part, "the hub sent another range than asked for")?;
                    if from > 0 {
                        continue;
                    }
                    return Err(HubError::Network {
                        url: reply.url,
                        reason: "it sent a part of the file unasked".to_owned(),
                    });
                }
                _ if from > 0 => {
                    self.restart(remote, part, "the hub ignored the resume request")?;
                }
                _ => {}
            }
            part.identify(identity)?;
            return self.read_body(remote, part, reply, total, received);
        }
    }

    /// Refuses answers that are not the file; returns the size of the whole file, if known.
    fn check_reply(&self, remote: &RemoteFile, reply: &Reply) -> Result<Option<u64>, HubError> {
        if reply.is_html() && !remote.path.ends_with(".html") {
            return Err(not_a_hub(reply, "an HTML page came instead of the file"));
        }
        let encoding = reply.header(header::CONTENT_ENCODING).unwrap_or("identity");
        if !encoding.eq_ignore_ascii_case("identity") {
            return Err(not_a_hub(reply, "it sent a compressed body unasked"));
        }
        let announced = match reply.status.as_u16() {
            206 => content_range(reply).and_then(|range| range.1),
            _ => reply
                .header(header::CONTENT_LENGTH)
                .and_then(|text| text.trim().parse().ok()),
        };
        let expected = remote.size.or(reply.linked_size);
        match (expected, announced) {
            (Some(expected), Some(actual)) if expected != actual => Err(HubError::SizeMismatch {
                path: remote.path.clone(),
                url: reply.url.clone(),
                expected,
                actual,
            }),
            _ => Ok(expected.or(announced)),
        }
    }

    fn identify(&self, remote: &RemoteFile, reply: &Reply) -> Result<Identity, HubError> {
        let linked = reply.linked_etag.as_deref().and_then(clean_sha256);
        if let (Some(listed), Some(served)) = (&remote.sha256, &linked)
            && listed != served
        {
            return Err(HubError::Changed {
                path: remote.path.clone(),
            });
        }
        Ok(Identity {
            source: self.hub.source,
            commit: self.listing.commit.clone(),
            sha256: remote.sha256.clone().or(linked),
            etag: reply.etag(),
        })
    }

    fn read_body(
        &self,
        remote: &RemoteFile,
        part: &mut PartFile,
        mut reply: Reply,
        total: Option<u64>,
        received: &mut u64,
    ) -> Result<(), HubError> {
        let mut block = vec![0; BLOCK];
        let mut speed = SpeedCheck::new(self.http);
        let mut told = Instant::now();
        loop {
            self.cancel.check()?;
            let count = reply
                .body
                .read(&mut block)
                .map_err(|error| HubError::Network {
                    url: reply.url.clone(),
                    reason: format!("{error} after {} bytes", part.len()),
                })?;
            if count == 0 {
                break;
            }
            if part.len() == 0
                && looks_like_html(&block[..count])
                && !remote.path.ends_with(".html")
            {
                return Err(not_a_hub(&reply, "an HTML page came instead of the file"));
            }
            let actual = part.len() + count as u64;
            if let Some(expected) = total.filter(|total| actual > *total) {
                return Err(self.wrong_size(remote, &reply, expected, actual));
            }
            part.append(&block[..count])?;
            *received += count as u64;
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell(remote, part);
            }
            speed.check(count, &reply.url)?;
        }
        self.tell(remote, part);
        match total {
            Some(expected) if part.len() != expected => {
                Err(self.wrong_size(remote, &reply, expected, part.len()))
            }
            _ => Ok(()),
        }
    }

    fn wrong_size(
        &self,
        remote: &RemoteFile,
        reply: &Reply,
        expected: u64,
        actual: u64,
    ) -> HubError {
        HubError::SizeMismatch {
            path: remote.path.clone(),
            url: reply.url.clone(),
            expected,
            actual,
        }
    }

    fn tell(&self, remote: &RemoteFile, part: &PartFile) {
        self.progress.event(&Event::FileProgress {
            path: remote.path.clone(),
            received: part.len(),
            size: remote.size,
        });
    }
}

/// Whether a file of the right size is in place already, so that its checksum is worth a look.
pub(crate) fn may_adopt(model_dir: &Path, remote: &RemoteFile) -> bool {
    let meta = std::fs::metadata(model_dir.join(&remote.path));
    remote.sha256.is_some()
        && meta.is_ok_and(|meta| meta.is_file() && remote.size == Some(meta.len()))
}

fn not_a_hub(reply: &Reply, reason: &str) -> HubError {
    HubError::NotAHub {
        url: reply.url.clone(),
        reason: reason.to_owned(),
    }
}

/// First byte and total of `Content-Range: bytes 5-9/10`; the total may be `*`.
fn content_range(reply: &Reply) -> Option<(u64, Option<u64>)> {
    let text = reply.header(header::CONTENT_RANGE)?;
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Login pages arrive with any content type; no model file begins like one.
fn looks_like_html(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    let begins = |tag: &str| {
        text.get(..tag.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(tag.as_bytes()))
    };
    begins("<!doctype html") || begins("<html")
}

/// Ends a transfer that only drips.
struct SpeedCheck {
    min_speed: u64,
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl SpeedCheck {
    fn new(http: &HttpClient) -> Self {
        Self {
            min_speed: http.timeouts.min_speed,
            window: http.timeouts.speed_window,
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn check(&mut self, count: usize, url: &str) -> Result<(), HubError> {
        self.bytes += count as u64;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return Ok(());
        }
        let received = std::mem::take(&mut self.bytes);
        self.since = Instant::now();
        let seconds = elapsed.as_secs_f64();
        if (received as f64) < self.min_speed as f64 * seconds {
            return Err(HubError::TooSlow {
                url: url.to_owned(),
                received,
                seconds,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;

    fn limited(seconds: Option<u64>) -> HubError {
        HubError::RateLimited {
            source_hub: Source::HuggingFace,
            url: String::new(),
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    #[test]
    fn waits_double_up_to_the_limit() {
        let retry = RetryPolicy {
            attempts: 5,
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(5),
        };
        let waits: Vec<_> = (1..6).map(|n| retry.wait(n, &limited(None))).collect();
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(
            waits,
            [seconds(1), seconds(2), seconds(4), seconds(5), None]
        );
        assert_eq!(retry.wait(1, &limited(Some(3))), seconds(3));
        assert_eq!(retry.wait(1, &limited(Some(6))), None, "asks for too much");
        assert_eq!(retry.wait(1, &HubError::Cancelled), None);
    }

    #[test]
    fn html_is_seen_by_its_first_tag() {
        assert!(looks_like_html(b"\n <!DOCTYPE html><html>"));
        assert!(looks_like_html(b"<HTML lang=en>"));
        assert!(!looks_like_html(b"{\"a\": \"<html>\"}"));
        assert!(!looks_like_html(b"<h"));
    }
}
