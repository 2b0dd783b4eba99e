//! Where a model computes: the one place that knows which devices this build has.

use crate::error::{Error, Result};
use candle_core::Device;
use std::fmt;
use std::str::FromStr;

/// The device that a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA or Metal device that this build and this machine have, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA device by number.
    Cuda(usize),
    /// An Apple device by number.
    Metal(usize),
}

/// A word that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{0}`; use auto, cpu, cuda, cuda:N, metal or metal:N")]
pub struct UnknownDevice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, Some(number.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (kind, number) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda" | "gpu", number) => Ok(Self::Cuda(number.unwrap_or(0))),
            ("metal", number) => Ok(Self::Metal(number.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::DeviceNotBuilt`] and [`Error::Device`]; never for `auto`, which falls back to the
    /// CPU and says so in the log.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(automatic()),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => {
                self.checked("cuda", cfg!(feature = "cuda"), || Device::new_cuda(number))
            }
            Self::Metal(number) => self.checked("metal", cfg!(feature = "metal"), || {
                Device::new_metal(number)
            }),
        }
    }

    fn checked(
        self,
        feature: &'static str,
        built: bool,
        open: impl FnOnce() -> candle_core::Result<Device>,
    ) -> Result<Device> {
        let device = self.to_string();
        if !built {
            return Err(Error::DeviceNotBuilt { device, feature });
        }
        open().map_err(|source| Error::Device { device, source })
    }
}

fn automatic() -> Device {
    let candidates = [
        (cfg!(feature = "cuda"), DeviceChoice::Cuda(0)),
        (cfg!(feature = "metal"), DeviceChoice::Metal(0)),
    ];
    for (_, choice) in candidates.into_iter().filter(|(built, _)| *built) {
        match choice.open() {
            Ok(device) => {
                tracing::info!("device: {choice}, the first that was found");
                return device;
            }
            Err(error) => tracing::info!("{choice} is not used: {error}"),
        }
    }
    tracing::info!("device: cpu");
    Device::Cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse_and_print() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal", DeviceChoice::Metal(0)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for text in ["", "tpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_was_not_built_names_its_feature() {
        let message = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert!(
            message.contains("cuda:1") && message.contains("--features cuda"),
            "{message}"
        );
        assert!(DeviceChoice::Auto.open().is_ok());
    }
}
