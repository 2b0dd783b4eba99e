//! What this machine can do, and how much of it the kernels reach.
//!
//! `cargo run --release -p aha-kernels --example ceilings [TYPE]`

use std::hint::black_box;
use std::time::Instant;

use aha_kernels::{
    Activation, Arithmetic, DepthwiseConv, HeadRotation, KernelError, PackedMatrix, PagedAttention,
    PagedCache, PagedSequence, RaggedAttention, Rows, WeightKind, instruction_set, layer_norm,
    measure_multiply_add_rate, measure_read_bandwidth, snake,
};
use half::{bf16, f16};

/// Weights that the single-row products walk through: more than caches hold.
const WEIGHT_BYTES: usize = 192 << 20;

fn main() -> Result<(), KernelError> {
    let threads = rayon::current_num_threads();
    println!(
        "instruction set {}, {threads} threads",
        instruction_set().name()
    );
    let bandwidth = measure_read_bandwidth(threads) / 1e9;
    let rate = measure_multiply_add_rate(Arithmetic::F32, threads).unwrap_or(f64::NAN) / 1e9;
    println!("memory {bandwidth:.1} GB/s, multiply-add {rate:.0} GFLOP/s of f32");
    for arithmetic in [Arithmetic::Bf16, Arithmetic::Int8] {
        if let Some(rate) = measure_multiply_add_rate(arithmetic, threads) {
            println!("{}: {:.0} GFLOP/s", arithmetic.name(), rate / 1e9);
        }
    }
    println!();
    // From inside the pool: what an engine thread does, too.
    rayon::scope(|_| report(bandwidth, rate))
}

fn report(bandwidth: f64, rate: f64) -> Result<(), KernelError> {
    println!(
        "{:<28}{:>5}{:>10}{:>9}{:>7}{:>10}{:>7}",
        "product", "m", "ms", "GB/s", "%", "GFLOP/s", "%"
    );
    let wish = std::env::args().nth(1);
    for (rows, cols) in [(3072, 1024), (1024, 3072)] {
        for (name, make) in kinds() {
            if wish.as_ref().is_some_and(|wish| wish != name) {
                continue;
            }
            let one = make(rows, cols)?;
            let count = WEIGHT_BYTES.div_ceil(one.size_in_bytes());
            let size = one.size_in_bytes();
            let mut matrices = vec![one];
            for _ in 1..count {
                matrices.push(make(rows, cols)?);
            }
            for m in [1, 2, 4, 6, 8, 16, 32, 64, 512] {
                let x = ramp(m * cols);
                let mut out = vec![0.0; m * rows];
                let calls = if m <= 16 { 2 * count } else { 2 + 1024 / m };
                let mut matrices = matrices.iter().cycle();
                let seconds = fastest(calls, || match matrices.next() {
                    Some(w) => w.matmul(&x, m, &mut out),
                    None => Ok(()),
                })?;
                let bytes = size as f64 / seconds / 1e9;
                let flops = (2 * m * rows * cols) as f64 / seconds / 1e9;
                println!(
                    "{:<28}{m:>5}{:>10.3}{bytes:>9.1}{:>7.0}{flops:>10.1}{:>7.0}",
                    format!("{name} [{rows}, {cols}]"),
                    seconds * 1e3,
                    100.0 * bytes / bandwidth,
                    100.0 * flops / rate
                );
                black_box(&out);
            }
        }
    }
    attention(bandwidth, rate)
}

fn attention(bandwidth: f64, rate: f64) -> Result<(), KernelError> {
    let (num_heads, num_kv_heads, head_dim, block_size) = (16, 8, 128, 16);
    println!("\nattention of {num_heads} heads of {head_dim} over {num_kv_heads} key heads");
    for (query_len, context_len, count) in [
        (1_usize, 1024_usize, 16_usize),
        (1, 8192, 4),
        (512, 512, 1),
        (512, 2048, 1),
    ] {
        let blocks: Vec<u32> = (0..(context_len * count).div_ceil(block_size) as u32).collect();
        let slots = blocks.len() * block_size;
        let rows = ramp(slots * num_kv_heads * head_dim);
        let mut cache = PagedCache::new(WeightKind::F16, slots, num_kv_heads, head_dim)?;
        cache.write(&(0..slots as u32).collect::<Vec<_>>(), &rows, &rows)?;
        let q = ramp(query_len * count * num_heads * head_dim);
        let mut out = vec![0.0; q.len()];
        let sequences: Vec<_> = (0..count)
            .map(|index| PagedSequence {
                query_start: index * query_len,
                query_len,
                context_len,
                blocks: &blocks[index * context_len / block_size..],
            })
            .collect();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = PagedAttention {
            num_heads,
            block_size,
            scale,
            window: None,
            sequences: &sequences,
        };
        let seconds = fastest(10, || attention.forward(&q, &cache, &mut out))?;
        let bytes = 4.0 * (slots * num_kv_heads * head_dim) as f64 / seconds / 1e9;
        let seen = (query_len * context_len - query_len * (query_len - 1) / 2) * count;
        let flops = 4.0 * (seen * num_heads * head_dim) as f64 / seconds / 1e9;
        println!(
            "{count:>2} x {query_len:>4} queries, context {context_len:>5}: {:>8.3} ms, \
             {bytes:>5.1} GB/s ({:.0} %), {flops:>6.1} GFLOP/s ({:.0} %)",
            seconds * 1e3,
            100.0 * bytes / bandwidth,
            100.0 * flops / rate
        );
    }
    encoders(bandwidth, rate)
}

/// What stands between the products of encoders and codecs, in their sizes.
fn encoders(bandwidth: f64, rate: f64) -> Result<(), KernelError> {
    println!("\nencoder attention");
    for (num_heads, head_dim, len, count) in [(16, 64, 3072, 1), (14, 64, 104, 4)] {
        let width = num_heads * head_dim;
        let values = ramp(3 * len * count * width);
        let part = |index: usize| Rows {
            values: &values[index * width..],
            stride: 3 * width,
        };
        let cu_seqlens: Vec<u32> = (0..=count).map(|index| (index * len) as u32).collect();
        let attention = RaggedAttention {
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            scale: 0.125,
            causal: false,
            prefix: 0,
            bias: None,
            cu_seqlens: &cu_seqlens,
        };
        let mut out = vec![0.0; len * count * width];
        let seconds = fastest(4, || attention.forward(part(0), part(1), part(2), &mut out))?;
        let flops = 4.0 * (len * len * count * width) as f64 / seconds / 1e9;
        println!(
            "{count} x {len} tokens, {num_heads} heads of {head_dim}: {:.3} ms, {flops:.1} GFLOP/s ({:.0} %)",
            seconds * 1e3,
            100.0 * flops / rate
        );
    }
    println!("\nbetween products, 3072 rows of 4096");
    let (rows, size) = (3072, 4096);
    let (mut x, weight) = (ramp(rows * size), ramp(size));
    let mut out = vec![0.0; x.len()];
    let tell = |name: &str, passes: usize, seconds: f64| {
        let bytes = (passes * 4 * rows * size) as f64 / seconds / 1e9;
        println!(
            "{name:<28}{:>9.3} ms {bytes:>6.1} GB/s ({:.0} %)",
            seconds * 1e3,
            100.0 * bytes / bandwidth
        );
    };
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        let seconds = fastest(4, || activation.apply_to_biased(&mut x, &weight))?;
        tell(&format!("{activation:?} behind a bias"), 2, seconds);
    }
    let norm = || layer_norm(&x, &weight, &weight, 1e-6, &mut out);
    tell("layer norm", 2, fastest(4, norm)?);
    let alpha = vec![1.0; size];
    let seconds = fastest(4, || snake(&x, &alpha, &alpha, &mut out))?;
    tell("snake", 2, seconds);
    let conv = DepthwiseConv {
        channels: size,
        kernel_size: 7,
        stride: 1,
        dilation: 1,
    };
    let (taps, len) = (ramp(7 * size), conv.output_rows(rows) * size);
    let seconds = fastest(4, || conv.forward(&x, &taps, None, &mut out[..len]))?;
    tell("depthwise, 7 taps", 2, seconds);
    let angles = ramp(rows * 32);
    let rotate = HeadRotation {
        num_heads: 64,
        head_dim: 64,
        half: 32,
        cos: &angles,
        sin: &angles,
        interleaved: false,
        norm: None,
    };
    let lying = Rows {
        values: &x,
        stride: size,
    };
    let seconds = fastest(4, || rotate.forward(lying, &mut out))?;
    tell("rotation", 2, seconds);
    Ok(())
}

type Make = fn(usize, usize) -> Result<PackedMatrix, KernelError>;

fn kinds() -> Vec<(&'static str, Make)> {
    vec![
        ("f32", |rows, cols| {
            PackedMatrix::from_f32(rows, cols, &ramp(rows * cols))
        }),
        ("f16", |rows, cols| {
            let data: Vec<_> = ramp(rows * cols).into_iter().map(f16::from_f32).collect();
            PackedMatrix::from_f16(rows, cols, &data)
        }),
        ("bf16", |rows, cols| {
            let data: Vec<_> = ramp(rows * cols).into_iter().map(bf16::from_f32).collect();
            PackedMatrix::from_bf16(rows, cols, &data)
        }),
        ("q8_0", |rows, cols| quantised(WeightKind::Q8_0, rows, cols)),
        ("q6_k", |rows, cols| quantised(WeightKind::Q6K, rows, cols)),
        ("q5_k", |rows, cols| quantised(WeightKind::Q5K, rows, cols)),
        ("q4_k", |rows, cols| quantised(WeightKind::Q4K, rows, cols)),
        ("q4_0", |rows, cols| quantised(WeightKind::Q4_0, rows, cols)),
    ]
}

/// Blocks of arbitrary codes; the factors come out small and finite.
fn quantised(kind: WeightKind, rows: usize, cols: usize) -> Result<PackedMatrix, KernelError> {
    let (values, bytes) = kind.gguf_block().unwrap_or((1, 1));
    let data: Vec<u8> = (0..rows * cols / values * bytes)
        .map(|index| (index % 31) as u8)
        .collect();
    PackedMatrix::from_gguf_blocks(kind, rows, cols, &data)
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| (index % 1009) as f32 / 1009.0 - 0.5)
        .collect()
}

/// Seconds of the fastest of some calls: what the kernel takes when nothing else runs.
fn fastest(
    calls: usize,
    mut work: impl FnMut() -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    work()?;
    let mut fastest = f64::INFINITY;
    for _ in 0..calls {
        let start = Instant::now();
        work()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(fastest)
}
