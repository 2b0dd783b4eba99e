use super::*;
use std::collections::HashMap;

fn scheduler(blocks: usize, budget: usize, sequences: usize) -> Scheduler {
    Scheduler::new(BlockPool::new(blocks, 4, true), None, budget, sequences)
}

fn tokens(token_ids: Vec<u32>) -> Prompt {
    Prompt::tokens(token_ids, String::new())
}

/// Runs until idle; every sequence generates `answer_len` tokens that only depend on its own history. Returns the
/// finished token lists by id.
fn run(
    scheduler: &mut Scheduler,
    answer_len: impl Fn(SequenceId) -> usize,
) -> Vec<(SequenceId, Vec<u32>)> {
    let mut finished = Vec::new();
    for _ in 0..10_000 {
        if scheduler.is_idle() {
            finished.sort();
            return finished;
        }
        let plan = scheduler.plan();
        assert!(
            !plan.token_ids.is_empty(),
            "a step without work would spin for ever"
        );
        let mut used = HashMap::new();
        for scheduled in &plan.scheduled {
            let slice = &scheduled.slice;
            assert!(slice.context_len <= slice.blocks.len() * 4);
            for position in slice.positions() {
                let owner = used.insert((slice.blocks[position / 4], position % 4), scheduled.id);
                assert_eq!(owner, None, "two sequences write one slot");
            }
        }
        scheduler.complete(&plan);
        for scheduled in &plan.scheduled {
            if scheduled.logits.is_none() {
                continue;
            }
            let sequence = scheduler
                .running
                .iter()
                .find(|s| s.id == scheduled.id)
                .unwrap();
            let next = sequence
                .tokens
                .iter()
                .fold(17u32, |hash, t| hash.wrapping_mul(31).wrapping_add(*t))
                % 97;
            let generated = sequence.tokens.len() - sequence.prompt_len;
            if generated == answer_len(scheduled.id) {
                finished.push((scheduled.id, sequence.tokens.clone()));
                scheduler.remove(scheduled.id);
            } else {
                scheduler.push_token(scheduled.id, next);
            }
        }
    }
    panic!("the scheduler never became idle");
}

#[test]
fn long_prompts_are_cut_into_chunks_beside_decoding_sequences() {
    let mut scheduler = scheduler(64, 8, 8);
    scheduler.add(1, &tokens(vec![1, 2, 3]), true);
    let plan = scheduler.plan();
    scheduler.complete(&plan);
    scheduler.push_token(1, 9);
    scheduler.add(2, &tokens((0..30).collect()), true);
    let plan = scheduler.plan();
    let lens: Vec<_> = plan
        .scheduled
        .iter()
        .map(|s| (s.id, s.slice.query_len, s.logits))
        .collect();
    assert_eq!(lens, [(1, 1, Some(0)), (2, 7, None)]);
}

#[test]
fn crowded_pools_preempt_and_still_give_every_sequence_its_own_answer() {
    let prompts: Vec<Vec<u32>> = (0..12u32)
        .map(|i| (0..(3 + 5 * i % 17)).map(|t| t * i % 50).collect())
        .collect();
    let alone: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(id, prompt)| {
            let mut scheduler = scheduler(16, 64, 1);
            scheduler.add(id as u64, &tokens(prompt.clone()), true);
            run(&mut scheduler, |id| 10 + id as usize).remove(0)
        })
        .collect();
    let mut crowded = scheduler(16, 7, 12);
    for (id, prompt) in prompts.into_iter().enumerate() {
        crowded.add(id as u64, &tokens(prompt), true);
    }
    assert_eq!(run(&mut crowded, |id| 10 + id as usize), alone);
    assert!(
        crowded.preemptions() > 0,
        "the pool was meant to be too small"
    );
    assert_eq!(crowded.pool().available(), 16);
}

#[test]
fn removal_gives_blocks_back_at_once_in_every_state() {
    let mut scheduler = scheduler(8, 4, 2);
    for id in 0..3 {
        scheduler.add(
            id,
            &tokens((0..10).map(|t| t + 100 * id as u32).collect()),
            true,
        );
    }
    let plan = scheduler.plan();
    scheduler.complete(&plan);
    scheduler.plan();
    assert!(scheduler.pool().available() < 8);
    for id in 0..3 {
        scheduler.remove(id);
    }
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.pool().available(), 8);
}

#[test]
fn a_repeated_prompt_comes_from_the_prefix_cache() {
    let mut scheduler = scheduler(16, 64, 4);
    let prompt: Vec<u32> = (0..11).collect();
    scheduler.add(1, &tokens(prompt.clone()), true);
    run(&mut scheduler, |_| 2);
    scheduler.add(2, &tokens(prompt.clone()), true);
    let plan = scheduler.plan();
    assert_eq!(scheduler.cached_tokens(2), 8);
    assert_eq!(plan.token_ids, [8, 9, 10]);
    scheduler.remove(2);
    scheduler.add(3, &tokens(prompt), false);
    scheduler.plan();
    assert_eq!(scheduler.cached_tokens(3), 0);
}

#[test]
fn a_full_decode_batch_lets_prompts_advance() {
    let mut scheduler = scheduler(64, 4, 8);
    for id in 0..4 {
        scheduler.add(id, &tokens(vec![id as u32 + 1]), true);
    }
    let plan = scheduler.plan();
    scheduler.complete(&plan);
    for id in 0..4 {
        scheduler.push_token(id, 5);
    }
    scheduler.add(9, &tokens((0..8).collect()), true);
    let plan = scheduler.plan();
    assert!(plan.scheduled.iter().any(|scheduled| scheduled.id == 9));
}

/// Runs prompts until idle on a scheduler with recurrent state, modelling each state as the tokens that it stands for:
/// a sequence's state must be exactly its own history whenever a step begins. Returns the tokens that prefixes saved.
fn run_with_states(
    scheduler: &mut Scheduler,
    states: &mut HashMap<u32, Vec<u32>>,
    answer_len: usize,
    cancelled: &[SequenceId],
) -> usize {
    let (mut generated, mut saved, mut steps) = (HashMap::new(), 0, 0);
    while !scheduler.is_idle() {
        steps += 1;
        assert!(steps < 10_000, "the scheduler never became idle");
        let plan = scheduler.plan();
        for (from, to) in &plan.restored {
            let state = states[from].clone();
            states.insert(*to, state);
        }
        saved += plan
            .admitted
            .iter()
            .map(|id| scheduler.cached_tokens(*id))
            .sum::<usize>();
        for scheduled in &plan.scheduled {
            let slice = &scheduled.slice;
            let state = states.entry(slice.state_slot).or_default();
            if slice.is_start() {
                state.clear();
            }
            let sequence = scheduler
                .running
                .iter()
                .find(|s| s.id == scheduled.id)
                .unwrap();
            let before = slice.context_len - slice.query_len;
            assert_eq!(
                state[..],
                sequence.tokens[..before],
                "sequence {}",
                scheduled.id
            );
            state.extend(&sequence.tokens[slice.positions()]);
        }
        for (from, to) in scheduler.complete(&plan) {
            let state = states[&from].clone();
            states.insert(to, state);
        }
        for scheduled in plan.scheduled.iter().filter(|s| s.logits.is_some()) {
            let count = generated.entry(scheduled.id).or_insert(0);
            *count += 1;
            if *count > answer_len || (cancelled.contains(&scheduled.id) && *count > 2) {
                scheduler.remove(scheduled.id);
            } else {
                scheduler.push_token(scheduled.id, 1000 + *count as u32);
            }
        }
    }
    saved
}

fn recurrent(blocks: usize, snapshots: usize) -> Scheduler {
    let states = StatePool::new(3, snapshots);
    Scheduler::new(BlockPool::new(blocks, 4, true), Some(states), 9, 3)
}

#[test]
fn recurrent_states_follow_their_sequences_through_sharing_preemption_and_cancellation() {
    for (blocks, snapshots) in [(100, 8), (100, 1), (100, 0), (14, 8), (14, 2)] {
        let mut scheduler = recurrent(blocks, snapshots);
        let mut id = 0;
        for round in 0..4u32 {
            for variant in 0..6u32 {
                // Prompts that begin alike, for 12 or 20 tokens, and end differently.
                let prompt = (0..12)
                    .chain((12..20).map(|i| i + 100 * (variant % 2)))
                    .chain((0..3 + variant % 4).map(|i| 500 + 10 * variant + i + round % 2))
                    .collect();
                scheduler.add(id, &tokens(prompt), variant != 5);
                id += 1;
            }
        }
        let saved = run_with_states(&mut scheduler, &mut HashMap::new(), 10, &[3, 8, 9]);
        assert_eq!(
            saved > 0,
            snapshots > 0,
            "{blocks} blocks, {snapshots} snapshots"
        );
        assert_eq!(scheduler.pool().available(), blocks);
    }
}

#[test]
fn the_second_prompt_keeps_the_state_where_it_parts_from_the_first_and_the_third_finds_it() {
    let (mut scheduler, mut states) = (recurrent(100, 8), HashMap::new());
    let prompt = |end: u32| (0..16).chain([end; 7]).collect::<Vec<u32>>();
    for (id, end, expected) in [(0, 50, 0), (1, 60, 0), (2, 70, 16), (3, 50, 20)] {
        scheduler.add(id, &tokens(prompt(end)), true);
        assert_eq!(
            run_with_states(&mut scheduler, &mut states, 1, &[]),
            expected,
            "prompt {id}"
        );
    }
}
