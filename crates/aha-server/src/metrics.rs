//! Counters in the text format of Prometheus.

use crate::model::{ModelState, Models};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What the server counts itself; the engines count the rest.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    panics: AtomicU64,
    /// By route template and status: bounded by the routes, not by what clients ask for.
    requests: Mutex<BTreeMap<(String, u16), Requests>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Requests {
    count: u64,
    seconds: f64,
}

impl Metrics {
    /// A request was answered (for a stream: its head was).
    pub(crate) fn count_request(&self, route: &str, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = requests.entry((route.to_owned(), status)).or_default();
        entry.count += 1;
        entry.seconds += took.as_secs_f64();
    }

    /// A handler panicked.
    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything, as one page of text.
    pub(crate) fn render(&self, models: &Models) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_server(&mut page);
        let _ = write_models(&mut page, models);
        page
    }

    fn write_server(&self, page: &mut String) -> std::fmt::Result {
        writeln!(page, "# TYPE aha_build_info gauge")?;
        writeln!(
            page,
            "aha_build_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        )?;
        writeln!(page, "# TYPE aha_panics_total counter")?;
        writeln!(
            page,
            "aha_panics_total {}",
            self.panics.load(Ordering::Relaxed)
        )?;
        let requests = self
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        writeln!(page, "# TYPE aha_http_requests_total counter")?;
        for ((route, status), entry) in &requests {
            writeln!(
                page,
                "aha_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {}",
                entry.count
            )?;
        }
        writeln!(page, "# TYPE aha_http_request_seconds_total counter")?;
        for ((route, status), entry) in &requests {
            writeln!(
                page,
                "aha_http_request_seconds_total{{route=\"{route}\",status=\"{status}\"}} {}",
                entry.seconds
            )?;
        }
        Ok(())
    }
}

/// One gauge or counter of every model's engine.
type Reading = (
    &'static str,
    &'static str,
    fn(&aha_engine::EngineStatus) -> u64,
);

const READINGS: [Reading; 11] = [
    ("aha_requests_running", "gauge", |status| {
        status.running as u64
    }),
    ("aha_requests_waiting", "gauge", |status| {
        status.waiting as u64
    }),
    ("aha_cache_blocks_total", "gauge", |status| {
        status.total_blocks as u64
    }),
    ("aha_cache_blocks_free", "gauge", |status| {
        status.free_blocks as u64
    }),
    ("aha_cache_blocks_prefix", "gauge", |status| {
        status.cached_blocks as u64
    }),
    ("aha_engine_stuck", "gauge", |status| {
        u64::from(status.stuck)
    }),
    ("aha_engine_steps_total", "counter", |status| status.steps),
    ("aha_prompt_tokens_total", "counter", |status| {
        status.prompt_tokens
    }),
    ("aha_generated_tokens_total", "counter", |status| {
        status.generated_tokens
    }),
    ("aha_preemptions_total", "counter", |status| {
        status.preemptions
    }),
    ("aha_engine_panics_total", "counter", |status| status.panics),
];

fn write_models(page: &mut String, models: &Models) -> std::fmt::Result {
    writeln!(page, "# TYPE aha_model_ready gauge")?;
    let mut engines = Vec::new();
    for model in models.iter() {
        let label = escape(model.id());
        let state = model.state();
        let ready = u8::from(matches!(state, ModelState::Ready(_)));
        writeln!(page, "aha_model_ready{{model=\"{label}\"}} {ready}")?;
        if let ModelState::Ready(engine) = state {
            engines.push((label, engine.status()));
        }
    }
    for (name, kind, read) in READINGS {
        writeln!(page, "# TYPE {name} {kind}")?;
        for (label, status) in &engines {
            writeln!(page, "{name}{{model=\"{label}\"}} {}", read(status))?;
        }
    }
    Ok(())
}

/// A label's value with the format's three escapes.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServedModel;

    #[test]
    fn the_page_counts_requests_by_route_and_status() {
        let metrics = Metrics::default();
        metrics.count_request("/v1/models", 200, Duration::from_millis(500));
        metrics.count_request("/v1/models", 200, Duration::from_millis(500));
        metrics.count_panic();
        let models = Models::new(vec![ServedModel::new("a\"b", [], "text-generation")]);
        let page = metrics.render(&models);
        for line in [
            "aha_http_requests_total{route=\"/v1/models\",status=\"200\"} 2",
            "aha_http_request_seconds_total{route=\"/v1/models\",status=\"200\"} 1",
            "aha_panics_total 1",
            "aha_model_ready{model=\"a\\\"b\"} 0",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line} not in\n{page}"
            );
        }
    }
}
