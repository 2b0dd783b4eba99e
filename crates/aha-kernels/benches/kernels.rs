//! The shapes of a 0.6-billion-parameter decoder: `cargo bench -p aha-kernels`.

use std::hint::black_box;

use aha_kernels::{
    Activation, PackedMatrix, PagedAttention, PagedCache, PagedSequence, RaggedAttention, Rows,
    WeightKind, layer_norm, rms_norm, silu_mul,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;

fn ramp(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| (index % 1009) as f32 / 1009.0 - 0.5)
        .collect()
}

fn matrices(rows: usize, cols: usize) -> Vec<PackedMatrix> {
    let data = ramp(rows * cols);
    let halves: Vec<_> = data.iter().copied().map(bf16::from_f32).collect();
    let blocks = |kind: WeightKind| {
        let (values, bytes) = kind.gguf_block().unwrap_or((1, 1));
        let data: Vec<u8> = (0..rows * cols / values * bytes)
            .map(|i| (i % 31) as u8)
            .collect();
        PackedMatrix::from_gguf_blocks(kind, rows, cols, &data)
    };
    [
        PackedMatrix::from_f32(rows, cols, &data),
        PackedMatrix::from_bf16(rows, cols, &halves),
        blocks(WeightKind::Q8_0),
        blocks(WeightKind::Q4K),
        blocks(WeightKind::Q6K),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn matmul(criterion: &mut Criterion) {
    for (rows, cols) in [(1024, 3072), (3072, 1024)] {
        for w in matrices(rows, cols) {
            let name = format!("matmul/{:?}/{rows}x{cols}", w.kind());
            let mut group = criterion.benchmark_group(name);
            for m in [1, 16, 512] {
                group.throughput(Throughput::Elements((m * rows * cols) as u64));
                let x = ramp(m * cols);
                let mut out = vec![0.0; m * rows];
                group.bench_function(BenchmarkId::from_parameter(m), |bencher| {
                    bencher.iter(|| w.matmul(black_box(&x), m, black_box(&mut out)));
                });
            }
        }
    }
}

fn attention(criterion: &mut Criterion) {
    let (num_heads, num_kv_heads, head_dim, block_size) = (16, 8, 128, 16);
    let context_len = 1024;
    let blocks: Vec<u32> = (0..(context_len / block_size) as u32).rev().collect();
    let rows = ramp(context_len * num_kv_heads * head_dim);
    let slots: Vec<u32> = (0..context_len as u32).collect();
    let filled = PagedCache::new(WeightKind::F16, context_len, num_kv_heads, head_dim).and_then(
        |mut cache| {
            cache.write(&slots, &rows, &rows)?;
            Ok(cache)
        },
    );
    let Ok(cache) = filled else { return };
    let mut group = criterion.benchmark_group("attention/context 1024");
    for query_len in [1, 512] {
        let sequences = [PagedSequence {
            query_start: 0,
            query_len,
            context_len,
            blocks: &blocks,
        }];
        let attention = PagedAttention {
            num_heads,
            block_size,
            scale: 0.088,
            window: None,
            sequences: &sequences,
        };
        let q = ramp(query_len * num_heads * head_dim);
        let mut out = vec![0.0; q.len()];
        group.bench_function(BenchmarkId::new("queries", query_len), |bencher| {
            bencher.iter(|| attention.forward(black_box(&q), &cache, black_box(&mut out)));
        });
    }
}

/// Encoders: thousands of tokens of an image, or many short texts. Throughput is that of multiply-adds, to be
/// compared with that of the products above.
fn encoder_attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encoder attention");
    for (name, num_heads, head_dim, lengths) in [
        ("one of 4096, head 64", 16, 64, vec![4096]),
        ("one of 4096, head 72", 16, 72, vec![4096]),
        ("one of 4096, head 80", 16, 80, vec![4096]),
        ("64 of 64, head 80", 16, 80, vec![64; 64]),
        ("64 of 16, head 32", 12, 32, vec![16; 64]),
    ] {
        let mut cu_seqlens = vec![0_u32];
        cu_seqlens.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let width = num_heads * head_dim;
        let tokens = cu_seqlens[lengths.len()] as usize;
        let (q, mut out) = (ramp(tokens * width), vec![0.0; tokens * width]);
        let rows = Rows {
            values: &q,
            stride: width,
        };
        let attention = RaggedAttention {
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            scale: 0.1,
            causal: false,
            prefix: 0,
            bias: None,
            cu_seqlens: &cu_seqlens,
        };
        let pairs: u64 = lengths.iter().map(|&l| u64::from(l).pow(2)).sum();
        group.sample_size(10);
        group.throughput(Throughput::Elements(2 * pairs * width as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| attention.forward(black_box(rows), rows, rows, black_box(&mut out)));
        });
    }
}

fn elementwise(criterion: &mut Criterion) {
    let (x, weight) = (ramp(16 * 3072), ramp(3072));
    let mut out = vec![0.0; x.len()];
    criterion.bench_function("rms_norm/16x3072", |bencher| {
        bencher.iter(|| rms_norm(black_box(&x), &weight, 1e-6, black_box(&mut out)));
    });
    criterion.bench_function("layer_norm/16x3072", |bencher| {
        bencher.iter(|| layer_norm(black_box(&x), &weight, &weight, 1e-6, black_box(&mut out)));
    });
    criterion.bench_function("gelu/16x3072", |bencher| {
        bencher.iter(|| Activation::Gelu.apply(black_box(&x), black_box(&mut out)));
    });
    criterion.bench_function("silu_mul/16x3072", |bencher| {
        bencher.iter(|| silu_mul(black_box(&x), &x, black_box(&mut out)));
    });
}

criterion_group!(benches, matmul, attention, encoder_attention, elementwise);
criterion_main!(benches);
