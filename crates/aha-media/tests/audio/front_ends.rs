//! Log-mel against WhisperFeatureExtractor, filter banks against torchaudio's Kaldi twin.

use aha_media::audio::{
    AudioError, Cmvn, FbankConfig, FbankExtractor, FbankWindow, Features, LogMelConfig,
    LogMelExtractor, MelPadding,
};

use crate::support::{floats, largest_difference, signal};

#[test]
fn whisper_log_mel() {
    for bins in [80, 128] {
        let extractor = LogMelExtractor::new(LogMelConfig {
            bins,
            ..Default::default()
        })
        .unwrap();
        let mel = extractor.extract(&signal(6400, 3, 123)).unwrap();
        assert_eq!((mel.bins, mel.frames, mel.valid_frames), (bins, 40, 40));
        let difference = largest_difference(&mel.data, &floats(&format!("mel_{bins}.f32")));
        assert!(difference < 1e-5, "{bins} bins: {difference}");
    }
}

#[test]
fn whisper_log_mel_padded_to_thirty_seconds() {
    let config = LogMelConfig {
        bins: 80,
        padding: MelPadding::To(480_000),
        ..Default::default()
    };
    let extractor = LogMelExtractor::new(config).unwrap();
    let mel = extractor.extract(&signal(4000, 5, 90)).unwrap();
    assert_eq!((mel.frames, mel.valid_frames), (3000, 25));
    let head: Vec<f32> = mel
        .data
        .chunks(3000)
        .flat_map(|row| row[..40].to_vec())
        .collect();
    let difference = largest_difference(&head, &floats("mel_80_padded_head.f32"));
    assert!(difference < 1e-5, "{difference}");
    assert!(matches!(
        extractor.extract(&vec![0.0; 480_001]).err(),
        Some(AudioError::TooLong { .. })
    ));
}

#[test]
fn kaldi_fbank() {
    let samples = signal(6000, 9, 77);
    let extractor = FbankExtractor::new(FbankConfig::default()).unwrap();
    let features = extractor.extract(&samples).unwrap();
    assert_eq!((features.frames, features.width), (36, 80));
    let difference = largest_difference(&features.data, &floats("fbank_povey.f32"));
    assert!(difference < 2e-4, "povey: {difference}");
    let config = FbankConfig {
        window: FbankWindow::Hamming,
        snip_edges: false,
        bins: 40,
        low_hz: 64.0,
        high_hz: -400.0,
        ..Default::default()
    };
    let features = FbankExtractor::new(config)
        .unwrap()
        .extract(&samples)
        .unwrap();
    assert_eq!((features.frames, features.width), (38, 40));
    let difference = largest_difference(&features.data, &floats("fbank_hamming_reflected.f32"));
    assert!(difference < 2e-4, "hamming: {difference}");
}

#[test]
fn low_frame_rate_repeats_the_ends() {
    let features = Features {
        frames: 8,
        width: 1,
        data: (0..8u8).map(f32::from).collect(),
    };
    let stacked = features.low_frame_rate(7, 6);
    assert_eq!((stacked.frames, stacked.width), (2, 7));
    assert_eq!(
        stacked.data,
        [0., 0., 0., 0., 1., 2., 3., 3., 4., 5., 6., 7., 7., 7.]
    );
    assert_eq!(features.low_frame_rate(1, 1), features);
}

#[test]
fn cmvn_shifts_and_scales() {
    let text = "<Nnet>\n<Splice> 2 2\n[ 0 ]\n<AddShift> 2 2\n<LearnRateCoef> 0 [ -1 -2 ]\n\
                <Rescale> 2 2\n<LearnRateCoef> 0 [ 0.5 2 ]\n</Nnet>\n";
    let cmvn = Cmvn::from_kaldi_nnet(text).unwrap();
    let mut features = Features {
        frames: 2,
        width: 2,
        data: vec![3.0, 3.0, 1.0, 0.0],
    };
    cmvn.apply(&mut features).unwrap();
    assert_eq!(features.data, [1.0, 2.0, 0.0, -4.0]);
    features.width = 4;
    assert!(cmvn.apply(&mut features).is_err());
    assert!(Cmvn::from_kaldi_nnet("<AddShift> [ 1 ]").is_err());
    assert!(Cmvn::from_kaldi_nnet("<AddShift> [ x ] <Rescale> [ 1 ]").is_err());
}

#[test]
fn too_little_sound_is_told() {
    let mel = LogMelExtractor::new(LogMelConfig::default()).unwrap();
    assert!(matches!(
        mel.extract(&[0.0; 200]).err(),
        Some(AudioError::TooShort { needed: 201, .. })
    ));
    assert_eq!(mel.extract(&[0.0; 201]).unwrap().frames, 1);
    let fbank = FbankExtractor::new(FbankConfig::default()).unwrap();
    let error = fbank.extract(&[0.0; 399]).err();
    assert!(matches!(
        error,
        Some(AudioError::TooShort { needed: 400, .. })
    ));
    assert_eq!(fbank.extract(&[0.0; 400]).unwrap().frames, 1);
    for config in [
        LogMelConfig {
            bins: 0,
            ..Default::default()
        },
        LogMelConfig {
            n_fft: 401,
            ..Default::default()
        },
        LogMelConfig {
            hop: 0,
            ..Default::default()
        },
    ] {
        let error = LogMelExtractor::new(config).err();
        assert!(matches!(error, Some(AudioError::InvalidOption { .. })));
    }
    assert!(
        FbankExtractor::new(FbankConfig {
            bins: 0,
            ..Default::default()
        })
        .is_err()
    );
    assert!(
        FbankExtractor::new(FbankConfig {
            high_hz: 9000.0,
            ..Default::default()
        })
        .is_err()
    );
}
