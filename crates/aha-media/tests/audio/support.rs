//! Fixtures, signals and measures.

use aha_media::audio::{AudioError, AudioReader, DecodeOptions, FfmpegOptions};

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/../../tests/fixtures/audio/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn floats(name: &str) -> Vec<f32> {
    fixture(name)
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

/// A linear congruential generator, of which the upper half of each state is used.
pub(crate) struct Random(pub(crate) u32);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 16
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() as usize) % bound
    }
}

/// A sawtooth with noise and pauses in 16-bit steps: the same numbers that the references were given.
pub(crate) fn signal(length: usize, seed: u32, period: i64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..length)
        .map(|i| {
            let noise = i64::from(random.next()) - 32_768;
            let saw = (i as i64 * 65_536 / period).rem_euclid(65_536) - 32_768;
            let value = saw.div_euclid(4) + noise.div_euclid(16);
            if i / 900 % 5 == 4 {
                0.0
            } else {
                value as f32 / 32_768.0
            }
        })
        .collect()
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Signal to noise ratio of `a` against the reference `b` in dB.
pub(crate) fn snr(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let power: f64 = b.iter().map(|&b| f64::from(b).powi(2)).sum();
    let error: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a - b).powi(2))
        .sum();
    10.0 * (power / error.max(1e-30)).log10()
}

/// Options under which nothing outside of this process is asked.
pub(crate) fn native() -> DecodeOptions {
    DecodeOptions {
        ffmpeg: FfmpegOptions {
            enabled: false,
            ..Default::default()
        },
        ..Default::default()
    }
}

pub(crate) struct Decoded {
    pub(crate) rate: u32,
    pub(crate) channels: usize,
    pub(crate) samples: Vec<f32>,
    pub(crate) damage: (u64, bool),
}

impl Decoded {
    pub(crate) fn frames(&self) -> usize {
        self.samples.len() / self.channels
    }

    pub(crate) fn mono(&self) -> Vec<f32> {
        let mut mono = Vec::new();
        aha_media::audio::downmix(&self.samples, self.channels, &mut mono);
        mono
    }
}

pub(crate) fn decode_with(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, AudioError> {
    let mut reader = AudioReader::open(bytes, options)?;
    let mut samples = Vec::new();
    while let Some(block) = reader.next_block()? {
        assert!(!block.is_empty());
        samples.extend_from_slice(block);
    }
    let (rate, channels) = (reader.sample_rate(), reader.channels());
    assert_eq!(reader.frames() as usize * channels, samples.len());
    Ok(Decoded {
        rate,
        channels,
        samples,
        damage: reader.damage(),
    })
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded, AudioError> {
    decode_with(bytes, &native())
}

/// A WAV file with a plain or extensible format chunk.
pub(crate) struct Wav {
    pub(crate) tag: u16,
    pub(crate) channels: u16,
    pub(crate) rate: u32,
    pub(crate) bits: u16,
    pub(crate) extensible: bool,
    pub(crate) data: Vec<u8>,
}

impl Wav {
    pub(crate) fn new(tag: u16, bits: u16, data: Vec<u8>) -> Self {
        Self {
            tag,
            channels: 1,
            rate: 16_000,
            bits,
            extensible: false,
            data,
        }
    }

    pub(crate) fn pcm16(samples: &[f32]) -> Self {
        let data = samples
            .iter()
            .flat_map(|x| ((x * 32_768.0).round() as i16).to_le_bytes())
            .collect();
        Self::new(1, 16, data)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let align = self.channels.wrapping_mul(self.bits / 8);
        let mut fmt = Vec::new();
        fmt.extend((if self.extensible { 0xfffe } else { self.tag }).to_le_bytes());
        fmt.extend(self.channels.to_le_bytes());
        fmt.extend(self.rate.to_le_bytes());
        fmt.extend(self.rate.wrapping_mul(u32::from(align)).to_le_bytes());
        fmt.extend(align.to_le_bytes());
        fmt.extend(self.bits.to_le_bytes());
        if self.extensible {
            fmt.extend(22u16.to_le_bytes());
            fmt.extend(self.bits.to_le_bytes());
            fmt.extend(((1u32 << self.channels) - 1).to_le_bytes());
            fmt.extend(self.tag.to_le_bytes());
            fmt.extend(b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71");
        }
        let mut out = b"RIFF".to_vec();
        out.extend((4 + 8 + fmt.len() as u32 + 8 + self.data.len() as u32).to_le_bytes());
        out.extend(b"WAVEfmt ");
        out.extend((fmt.len() as u32).to_le_bytes());
        out.extend(fmt);
        out.extend(b"data");
        out.extend((self.data.len() as u32).to_le_bytes());
        out.extend(&self.data);
        out
    }
}
