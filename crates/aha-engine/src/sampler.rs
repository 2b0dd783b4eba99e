//! Choosing the next token from a row of logits.

use crate::error::EngineError;
use crate::request::{NgramWindow, SamplingParams};
use aha_kernels::softmax_weights;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// A token and its log-probability in the raw distribution.
pub(crate) type Scored = (u32, f32);

/// Why no token can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoChoice {
    /// The model's own logits.
    #[error(
        "the model produced logits that are not numbers (NaN or all infinite): the weights or the precision are at \
         fault"
    )]
    InvalidLogits,
    /// The request's rules.
    #[error(
        "every token is banned here: ask for a larger `no_repeat_ngram_size` or `vllm_xargs.ngram_size`, or for fewer tokens"
    )]
    AllBanned,
}

impl From<NoChoice> for EngineError {
    fn from(error: NoChoice) -> Self {
        match error {
            NoChoice::InvalidLogits => Self::internal(error),
            NoChoice::AllBanned => Self::invalid("no_repeat_ngram_size", error.to_string()),
        }
    }
}

/// One request's choices: parameters, history and random stream.
///
/// Nothing here depends on other requests of the batch, so the same seed gives the same text in any company.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    random: Xoshiro256PlusPlus,
    prompt_tokens: HashSet<u32>,
    output_counts: HashMap<u32, u32>,
    /// Prompt and output, for the bans of n-grams; empty without one.
    history: Vec<u32>,
    scratch: Scratch,
}

/// Memory of a choice, kept for the next one.
#[derive(Debug, Default)]
struct Scratch {
    /// Logits after the request's rules.
    scores: Vec<f32>,
    /// Of each token, that of the most probable one being 1.
    weights: Vec<f32>,
    /// Tokens that `top_k` and `top_p` leave.
    candidates: Vec<u32>,
}

impl Sampler {
    /// Starts the random stream at `params.seed`, or at `fallback_seed` when the request has none.
    pub(crate) fn new(params: SamplingParams, prompt: &[u32], fallback_seed: u64) -> Self {
        let seed = params.seed.unwrap_or(fallback_seed);
        // Only the repetition penalty looks at the prompt.
        let prompt_tokens = if params.repetition_penalty == 1.0 {
            HashSet::new()
        } else {
            prompt.iter().copied().collect()
        };
        let mut sampler = Self {
            params,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            prompt_tokens,
            output_counts: HashMap::new(),
            history: Vec::new(),
            scratch: Scratch::default(),
        };
        if sampler.bans_ngrams() {
            sampler.history = prompt.to_vec();
        }
        sampler
    }

    /// Chooses a token. `suppressed` tokens cannot be chosen.
    pub(crate) fn sample(&mut self, logits: &[f32], suppressed: &[u32]) -> Result<u32, NoChoice> {
        let banned = self.banned();
        // Of a large vocabulary even a copy takes its time.
        let choice = if suppressed.is_empty() && banned.is_empty() && !self.adjusts() {
            self.choose(logits)
        } else {
            let mut scores = std::mem::take(&mut self.scratch.scores);
            scores.clear();
            scores.extend_from_slice(logits);
            self.adjust(&mut scores);
            for token in suppressed.iter().chain(&banned) {
                if let Some(score) = scores.get_mut(*token as usize) {
                    *score = f32::NEG_INFINITY;
                }
            }
            let choice = self.choose(&scores);
            self.scratch.scores = scores;
            choice
        };
        let token = match choice {
            Err(NoChoice::InvalidLogits) if !banned.is_empty() && argmax(logits).is_ok() => {
                return Err(NoChoice::AllBanned);
            }
            choice => choice?,
        };
        if self.adjusts() {
            *self.output_counts.entry(token).or_default() += 1;
        }
        if self.bans_ngrams() {
            self.history.push(token);
        }
        Ok(token)
    }

    fn bans_ngrams(&self) -> bool {
        self.params.no_repeat_ngram_size > 0 || self.params.ngram_window.is_some()
    }

    /// Tokens that would repeat an n-gram.
    fn banned(&self) -> Vec<u32> {
        let mut banned = repeating(&self.history, self.params.no_repeat_ngram_size, usize::MAX);
        if let Some(NgramWindow {
            ngram_size,
            window_size,
            whitelist_token_ids,
        }) = &self.params.ngram_window
        {
            let mut recent = repeating(&self.history, *ngram_size, *window_size);
            recent.retain(|token| !whitelist_token_ids.contains(token));
            banned.append(&mut recent);
        }
        banned
    }

    /// Whether [`Sampler::adjust`] does anything.
    fn adjusts(&self) -> bool {
        let params = &self.params;
        !params.logit_bias.is_empty()
            || params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
    }

    fn adjust(&self, scores: &mut [f32]) {
        let params = &self.params;
        for (token, bias) in &params.logit_bias {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score += bias;
            }
        }
        if params.repetition_penalty != 1.0 {
            let seen = self.prompt_tokens.iter().chain(
                self.output_counts
                    .keys()
                    .filter(|token| !self.prompt_tokens.contains(token)),
            );
            for token in seen {
                if let Some(score) = scores.get_mut(*token as usize) {
                    *score = if *score > 0.0 {
                        *score / params.repetition_penalty
                    } else {
                        *score * params.repetition_penalty
                    };
                }
            }
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            for (token, count) in &self.output_counts {
                if let Some(score) = scores.get_mut(*token as usize) {
                    *score -= params.presence_penalty + params.frequency_penalty * *count as f32;
                }
            }
        }
    }

    fn choose(&mut self, scores: &[f32]) -> Result<u32, NoChoice> {
        let best = argmax(scores)?;
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.params;
        if temperature == 0.0 || top_k == 1 {
            return Ok(best);
        }
        let point = self.uniform();
        let Scratch {
            weights,
            candidates,
            ..
        } = &mut self.scratch;
        let highest = scores[best as usize];
        let total = softmax_weights(scores, highest, 1.0 / temperature, weights);
        let limits = Limits {
            top_k: if top_k == 0 { scores.len() } else { top_k },
            top_p,
        };
        let chosen = if limits.top_k < scores.len() || top_p < 1.0 {
            limits.choose(scores, weights, total, candidates);
            draw(candidates.iter().copied(), weights, min_p, point)
        } else {
            draw(0..scores.len() as u32, weights, min_p, point)
        };
        Ok(chosen.unwrap_or(best))
    }

    /// A number in [0, 1) with 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How many tokens may be drawn.
struct Limits {
    top_k: usize,
    top_p: f32,
}

impl Limits {
    /// Writes the tokens that `top_k` and then `top_p` leave to `candidates`, best first. `total` is the sum of all
    /// weights.
    fn choose(&self, scores: &[f32], weights: &[f32], total: f64, candidates: &mut Vec<u32>) {
        candidates.clear();
        let len = scores.len();
        let weight = |token: &u32| f64::from(weights[*token as usize]);
        let top_p = f64::from(self.top_p);
        let wanted = if self.top_k < len {
            // Sorting a whole vocabulary would take longer than the smaller layers of a model.
            let least = at_least_as_many(scores, self.top_k);
            candidates.extend((0..len as u32).filter(|token| scores[*token as usize] >= least));
            most_probable_first(candidates, scores, self.top_k);
            candidates.truncate(self.top_k);
            top_p * candidates.iter().map(weight).sum::<f64>()
        } else {
            // All tokens below this weigh less together than what may be left out: top_p is reached without them. A
            // little less, for the rounding of sums.
            let least = 0.999 * (1.0 - top_p) * total / len as f64;
            candidates.extend((0..len as u32).filter(|token| weight(token) >= least));
            top_p * total
        };
        if self.top_p >= 1.0 {
            return;
        }
        // Nearly always a few hundred tokens reach top_p: sort so many, and more only if they do not.
        let mut sorted = 256.min(candidates.len());
        loop {
            most_probable_first(candidates, scores, sorted);
            let mut reached = 0.0;
            for (index, token) in candidates[..sorted].iter().enumerate() {
                reached += weight(token);
                if reached >= wanted {
                    return candidates.truncate(index + 1);
                }
            }
            if sorted == candidates.len() {
                return;
            }
            sorted = (sorted * 8).min(candidates.len());
        }
    }
}

/// A score that at least `count` scores reach: the `count`-th largest of the maxima of as many parts, which is near the
/// `count`-th largest score where `count` is small.
fn at_least_as_many(scores: &[f32], count: usize) -> f32 {
    /// Parts whose maxima have room on the stack.
    const PARTS: usize = 2048;
    let parts = PARTS.min(scores.len());
    if count > parts {
        return f32::NEG_INFINITY;
    }
    let mut maxima = [f32::NEG_INFINITY; PARTS];
    let cut = |part: usize| part * scores.len() / parts;
    for (part, largest) in maxima[..parts].iter_mut().enumerate() {
        let part = scores[cut(part)..cut(part + 1)].iter();
        *largest = part.fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    }
    let (_, least, _) = maxima[..parts].select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    *least
}

/// The token at `point`, which is in [0, 1), of those of `tokens` that weigh at least `min_p`.
fn draw(
    tokens: impl Iterator<Item = u32> + Clone,
    weights: &[f32],
    min_p: f32,
    point: f64,
) -> Option<u32> {
    // The most probable token weighs 1.
    let kept = tokens
        .map(|token| (token, weights[token as usize]))
        .filter(|(_, weight)| *weight >= min_p);
    let total: f64 = kept.clone().map(|(_, weight)| f64::from(weight)).sum();
    let mut point = point * total;
    let mut last = None;
    for (token, weight) in kept {
        point -= f64::from(weight);
        if weight > 0.0 {
            last = Some(token);
            if point < 0.0 {
                break;
            }
        }
    }
    // Rounding can leave the point at the very end.
    last
}

/// Best first; equal scores by token id, so that the order is total and the same everywhere.
fn by_score(scores: &[f32]) -> impl Fn(&u32, &u32) -> Ordering + '_ {
    move |a, b| {
        scores[*b as usize]
            .total_cmp(&scores[*a as usize])
            .then(a.cmp(b))
    }
}

/// Moves the `count` best tokens to the front, in order.
fn most_probable_first(tokens: &mut [u32], scores: &[f32], count: usize) {
    let order = by_score(scores);
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, &order);
    }
    tokens[..count].sort_unstable_by(&order);
}

/// Tokens that would end an n-gram of `size` tokens which the last `window` tokens of `history` hold already. Size 0 is
/// no rule; size 1 bans every token of the window.
fn repeating(history: &[u32], size: usize, window: usize) -> Vec<u32> {
    let Some(prefix_len) = size.checked_sub(1) else {
        return Vec::new();
    };
    let recent = &history[history.len().saturating_sub(window)..];
    let Some(prefix_start) = history.len().checked_sub(prefix_len) else {
        return Vec::new();
    };
    let prefix = &history[prefix_start..];
    let mut banned = Vec::new();
    for ngram in recent.windows(size) {
        if &ngram[..prefix_len] == prefix {
            banned.push(ngram[prefix_len]);
        }
    }
    // The run of a picture's placeholders is one n-gram many times over.
    banned.sort_unstable();
    banned.dedup();
    banned
}

/// The first token with the highest score.
fn argmax(scores: &[f32]) -> Result<u32, NoChoice> {
    // Lanes without branches, which compilers make vectors of.
    const LANES: usize = 16;
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut has_nan = [false; LANES];
    let (pieces, rest) = scores.as_chunks::<LANES>();
    for piece in pieces {
        for lane in 0..LANES {
            has_nan[lane] |= piece[lane].is_nan();
            highest[lane] = if piece[lane] > highest[lane] {
                piece[lane]
            } else {
                highest[lane]
            };
        }
    }
    if has_nan.contains(&true) || rest.iter().any(|score| score.is_nan()) {
        return Err(NoChoice::InvalidLogits);
    }
    let highest = highest
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    scores
        .iter()
        .position(|score| *score == highest)
        .filter(|_| highest.is_finite())
        .map(|token| token as u32)
        .ok_or(NoChoice::InvalidLogits)
}

/// Log-probability of `token` and the `top` best tokens with theirs: log-softmax of the raw logits.
pub(crate) fn log_probabilities(logits: &[f32], token: u32, top: usize) -> (f32, Vec<Scored>) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from((logit - highest).exp()))
        .sum();
    let log_sum = sum.ln() as f32 + highest;
    let mut best = Vec::new();
    if top > 0 {
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        let top = top.min(tokens.len());
        most_probable_first(&mut tokens, logits, top);
        best.extend(
            tokens[..top]
                .iter()
                .map(|token| (*token, logits[*token as usize] - log_sum)),
        );
    }
    (logits[token as usize] - log_sum, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(
            SamplingParams {
                seed: Some(7),
                ..params
            },
            &[],
            0,
        )
    }

    fn histogram(params: SamplingParams, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = sampler(params);
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits, &[]).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let counts = histogram(
            SamplingParams::default(),
            &[0.0, (2f32).ln(), (5f32).ln()],
            80_000,
        );
        for (count, share) in counts.iter().zip([1.0, 2.0, 5.0]) {
            assert!(
                (*count as f64 / 80_000.0 - share / 8.0).abs() < 0.01,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn temperature_sharpens() {
        let params = SamplingParams {
            temperature: 0.5,
            ..Default::default()
        };
        let counts = histogram(params, &[0.0, (3f32).ln()], 50_000);
        assert!(
            (counts[1] as f64 / 50_000.0 - 0.9).abs() < 0.01,
            "{counts:?}"
        );
    }

    #[test]
    fn truncations_keep_what_they_say() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let support = |params| {
            let counts = histogram(params, &logits, 4_000);
            counts.iter().map(|count| *count > 0).collect::<Vec<_>>()
        };
        assert_eq!(
            support(SamplingParams {
                top_k: 2,
                ..Default::default()
            }),
            [true, true, false, false]
        );
        assert_eq!(
            support(SamplingParams {
                top_p: 0.7,
                ..Default::default()
            }),
            [true, true, false, false]
        );
        assert_eq!(
            support(SamplingParams {
                top_p: 0.81,
                ..Default::default()
            }),
            [true, true, true, false]
        );
        assert_eq!(
            support(SamplingParams {
                min_p: 0.29,
                ..Default::default()
            }),
            [true, true, true, false]
        );
        assert_eq!(
            support(SamplingParams {
                top_k: 1,
                ..Default::default()
            }),
            [true, false, false, false]
        );
    }

    #[test]
    fn top_p_over_a_large_flat_vocabulary_is_exact() {
        let scores = vec![0.0f32; 5000];
        let limits = Limits {
            top_k: scores.len(),
            top_p: 0.5,
        };
        let mut candidates = Vec::new();
        limits.choose(&scores, &vec![1.0; 5000], 5000.0, &mut candidates);
        assert_eq!(candidates.len(), 2500);
    }

    /// What a sort of the whole vocabulary leaves.
    fn sorted_limits(limits: &Limits, scores: &[f32], weights: &[f32]) -> Vec<u32> {
        let mut tokens: Vec<u32> = (0..scores.len() as u32).collect();
        tokens.sort_unstable_by(by_score(scores));
        tokens.truncate(limits.top_k);
        let weight = |token: &u32| f64::from(weights[*token as usize]);
        let wanted = f64::from(limits.top_p) * tokens.iter().map(weight).sum::<f64>();
        let mut reached = 0.0;
        let last = tokens.iter().position(|token| {
            reached += weight(token);
            reached >= wanted
        });
        if limits.top_p < 1.0 {
            tokens.truncate(last.map_or(tokens.len(), |last| last + 1));
        }
        tokens
    }

    #[test]
    fn limits_leave_what_a_sort_of_everything_leaves() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut uniform = || (random.next_u64() >> 40) as f32 / (1 << 24) as f32;
        for len in [1, 5, 300, 5000, 50_000] {
            // Peaked, flat, and with many equal scores.
            for (spread, step) in [(30.0, 0.0), (0.1, 0.0), (8.0, 0.5)] {
                let score = |_| {
                    let score: f32 = uniform() * spread;
                    if step > 0.0 {
                        (score / step).round() * step
                    } else {
                        score
                    }
                };
                let scores: Vec<f32> = (0..len).map(score).collect();
                let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut weights = Vec::new();
                let total = softmax_weights(&scores, highest, 1.0, &mut weights);
                for top_k in [1, 2, 40, 3000, len] {
                    for top_p in [0.0, 0.3, 0.9, 0.999, 1.0] {
                        let limits = Limits {
                            top_k: top_k.min(len),
                            top_p,
                        };
                        let mut have = vec![7];
                        limits.choose(&scores, &weights, total, &mut have);
                        let want = sorted_limits(&limits, &scores, &weights);
                        // Sums in another order differ in their last bits, and so may the last token.
                        let common = have.len().min(want.len());
                        assert!(
                            have.len().abs_diff(want.len()) <= 1
                                && (top_k.min(len) == len && top_p == 1.0
                                    || have[..common] == want[..common]),
                            "{len} scores, {top_k}, {top_p}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn penalties_and_bias_change_the_greedy_choice() {
        let greedy = SamplingParams::greedy();
        let logits = [1.0, 0.9, -1.0];
        let mut repeated = Sampler::new(
            SamplingParams {
                repetition_penalty: 2.0,
                ..greedy.clone()
            },
            &[0],
            0,
        );
        assert_eq!(repeated.sample(&logits, &[]).unwrap(), 1);
        let mut frequent = sampler(SamplingParams {
            frequency_penalty: 0.06,
            ..greedy.clone()
        });
        let choices: Vec<u32> = (0..4)
            .map(|_| frequent.sample(&logits, &[]).unwrap())
            .collect();
        assert_eq!(choices, [0, 0, 1, 0]);
        let mut biased = sampler(SamplingParams {
            logit_bias: vec![(2, 5.0)],
            ..greedy.clone()
        });
        assert_eq!(biased.sample(&logits, &[]).unwrap(), 2);
        assert_eq!(sampler(greedy).sample(&logits, &[0]).unwrap(), 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(
                SamplingParams {
                    seed: Some(seed),
                    ..Default::default()
                },
                &[],
                0,
            );
            (0..50)
                .map(|_| sampler.sample(&logits, &[]).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        assert!(
            sampler(SamplingParams::greedy())
                .sample(&[0.0, f32::NAN], &[])
                .is_err()
        );
        assert!(
            sampler(SamplingParams::greedy())
                .sample(&[f32::NEG_INFINITY; 2], &[])
                .is_err()
        );
        assert!(
            sampler(SamplingParams::default())
                .sample(&[f32::INFINITY, 0.0], &[])
                .is_err()
        );
    }

    /// Hugging Face's rule in its own terms: which tokens followed the last `size` - 1 tokens anywhere before.
    fn followers(history: &[u32], size: usize) -> Vec<u32> {
        let mut found: Vec<u32> = (0..=history.len().saturating_sub(size))
            .filter(|start| start + size <= history.len())
            .filter(|start| {
                (0..size - 1)
                    .all(|at| history[start + at] == history[history.len() + 1 + at - size])
            })
            .map(|start| history[start + size - 1])
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn repeated_ngrams_are_found_in_the_whole_history_or_its_end() {
        let history = [1, 2, 3, 1, 2, 4, 1, 2];
        assert_eq!(repeating(&history, 3, usize::MAX), [3, 4]);
        assert_eq!(repeating(&history, 3, 5), [4]);
        assert_eq!(repeating(&history, 3, 4), [0; 0]);
        assert_eq!(repeating(&history, 0, usize::MAX), [0; 0]);
        assert_eq!(repeating(&history, 1, 3), [1, 2, 4]);
        assert_eq!(repeating(&[], 1, 9), [0; 0]);
        let mut state = Xoshiro256PlusPlus::seed_from_u64(5);
        let mut hits = 0;
        for _ in 0..500 {
            let length = (state.next_u64() % 40) as usize;
            let history: Vec<u32> = (0..length).map(|_| (state.next_u64() % 3) as u32).collect();
            for size in 1..6 {
                let expected = followers(&history, size);
                hits += usize::from(!expected.is_empty());
                assert_eq!(
                    repeating(&history, size, usize::MAX),
                    expected,
                    "{history:?}"
                );
                let window = (state.next_u64() % 50) as usize;
                let start = history.len().saturating_sub(window);
                let mut inside: Vec<u32> = (start..=history.len().saturating_sub(size))
                    .filter(|at| at + size <= history.len())
                    .filter(|at| history[*at..at + size - 1] == history[history.len() + 1 - size..])
                    .map(|at| history[at + size - 1])
                    .collect();
                inside.sort_unstable();
                inside.dedup();
                let found = repeating(&history, size, window);
                assert_eq!(found, inside, "{window} of {history:?}");
            }
        }
        assert!(hits > 500, "{hits}");
    }

    #[test]
    fn banned_tokens_give_way_to_the_next_best_and_whitelisted_ones_stay() {
        let logits = [3.0, 2.0, 1.0];
        let greedy = |params: SamplingParams, prompt: &[u32], count: usize| {
            let params = SamplingParams {
                temperature: 0.0,
                ..params
            };
            let mut sampler = Sampler::new(params, prompt, 0);
            (0..count)
                .map(|_| sampler.sample(&logits, &[]))
                .collect::<Result<Vec<_>, _>>()
        };
        let plain = SamplingParams {
            no_repeat_ngram_size: 2,
            ..Default::default()
        };
        // 0 followed itself in the prompt, so it may not again; then 1, then 2, then nothing is left to follow it.
        assert_eq!(greedy(plain.clone(), &[0, 0], 4).unwrap(), [1, 0, 2, 0]);
        assert_eq!(greedy(plain, &[0, 0], 5), Err(NoChoice::AllBanned));
        let windowed = |whitelist: &[u32]| SamplingParams {
            ngram_window: Some(NgramWindow {
                ngram_size: 1,
                window_size: 2,
                whitelist_token_ids: whitelist.to_vec(),
            }),
            ..Default::default()
        };
        assert_eq!(greedy(windowed(&[]), &[], 5).unwrap(), [0, 1, 2, 0, 1]);
        assert_eq!(greedy(windowed(&[0]), &[], 3).unwrap(), [0, 0, 0]);
        let once = SamplingParams {
            no_repeat_ngram_size: 1,
            ..Default::default()
        };
        assert_eq!(greedy(once.clone(), &[1], 2).unwrap(), [0, 2]);
        assert_eq!(greedy(once, &[1], 3), Err(NoChoice::AllBanned));
    }

    #[test]
    fn log_probabilities_are_a_log_softmax() {
        let (chosen, top) = log_probabilities(&[1.0, 2.0, 3.0], 0, 2);
        let z = (1f32.exp() + 2f32.exp() + 3f32.exp()).ln();
        assert!((chosen - (1.0 - z)).abs() < 1e-6);
        assert_eq!(
            top.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            [2, 1]
        );
        assert!((top[0].1 - (3.0 - z)).abs() < 1e-6);
    }
}
