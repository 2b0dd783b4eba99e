//! What an image costs before a model sees it.

use std::hint::black_box;

use aha_media::image::{
    Channels, Filter, Image, Normalization, PatchLayout, PatchOrder, Resampler, patches, resize,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn photo(width: u32, height: u32) -> Option<Image> {
    let length = width as usize * height as usize * 3;
    let samples = (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8);
    Image::new(width, height, Channels::Rgb, samples.collect()).ok()
}

fn resizing(criterion: &mut Criterion) {
    let Some(image) = photo(4000, 3000) else {
        return;
    };
    let mut group = criterion.benchmark_group("resize 4000x3000 to 1024x768");
    group.sample_size(10);
    group.throughput(Throughput::Elements(4000 * 3000));
    for (name, filter, by) in [
        ("pillow bilinear", Filter::Bilinear, Resampler::Pillow),
        ("pillow bicubic", Filter::Bicubic, Resampler::Pillow),
        ("pillow lanczos", Filter::Lanczos, Resampler::Pillow),
        ("torch bicubic", Filter::Bicubic, Resampler::Torch),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| resize(black_box(&image), 1024, 768, filter, by));
        });
    }
    group.finish();
}

fn cutting(criterion: &mut Criterion) {
    let (Some(image), Ok(normalization)) = (
        photo(1024, 768),
        Normalization::fused(1.0 / 255.0, [0.5; 3], [0.5; 3]),
    ) else {
        return;
    };
    let order = PatchOrder {
        patch_size: 16,
        merge_size: 2,
        temporal_patch_size: 2,
        layout: PatchLayout::ChannelFirst,
    };
    let frames = [image];
    criterion.bench_function("patches of 1024x768", |bencher| {
        bencher.iter(|| patches(black_box(&frames), &order, &normalization));
    });
}

criterion_group!(benches, resizing, cutting);
criterion_main!(benches);
