//! Where tensors live and in which precision. Chosen at run time; model code never names it.

use crate::{Error, Result};

/// The number type of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// Single precision: the working type.
    F32,
    /// Double precision: gradient checks and references.
    F64,
}

/// A cheap handle; clone it freely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    place: Place,
    dtype: DType,
}

/// What runs the ops. A further backend is a variant here and an arm in `on_device!`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Cpu,
}

impl Device {
    /// The default backend: single precision on the host, all rayon threads.
    pub fn cpu() -> Self {
        Device { place: Place::Cpu, dtype: DType::F32 }
    }

    /// Double precision on the host, for gradient checks and as the reference of everything else.
    pub fn cpu_f64() -> Self {
        Device { place: Place::Cpu, dtype: DType::F64 }
    }

    /// The device that a user names: `auto` (the best there is), `cpu`, or `cuda`.
    ///
    /// # Errors
    /// [`Error::Usage`] for another word, [`Error::Device`] where no such device can be used.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "auto" | "cpu" => Ok(Device::cpu()),
            "cuda" => Err(Error::Device(
                "device cuda cannot be used: this build has no CUDA backend; use --device cpu, which runs everything"
                    .into(),
            )),
            _ => Err(Error::Usage(format!("unknown device {name:?}; choose auto, cpu or cuda"))),
        }
    }

    /// The precision of this device's tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

/// Runs the CPU arm with `T` bound to the device's number type. The only dispatch in the library.
macro_rules! on_device {
    ($device:expr, $T:ident => $cpu:expr) => {
        match ($device.place(), $device.dtype()) {
            ($crate::device::Place::Cpu, $crate::DType::F32) => {
                type $T = f32;
                $cpu
            }
            ($crate::device::Place::Cpu, $crate::DType::F64) => {
                type $T = f64;
                $cpu
            }
        }
    };
}
pub(crate) use on_device;
