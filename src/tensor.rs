//! Dense, row-major, contiguous arrays. No strides: an op that needs a transpose says so itself.

use crate::{
    DType, Device,
    device::{Place, on_device},
    gpu::{Arg, Block, Launch, Span, args},
    real::Real,
};
use std::sync::{Arc, Mutex};

/// A shaped, shared, read-only view of memory on one device. Cloning it copies a pointer.
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    at: usize,
    shape: Vec<usize>,
    device: Device,
}

/// Memory on one device. Writable while it has one owner, immutable once shared.
pub(crate) enum Buffer {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Gpu(Block),
}

/// Large buffers that nobody uses any more, kept for the next tensor of the same size. The same sizes come back at every step, and
/// fresh memory, which the system hands out page by page, would cost more than many an op.
struct Spare<T>(Mutex<Vec<Vec<T>>>);

static SPARE_F32: Spare<f32> = Spare(Mutex::new(vec![]));
static SPARE_F64: Spare<f64> = Spare(Mutex::new(vec![]));

impl<T> Spare<T> {
    /// Smaller buffers are left to the allocator, which keeps them itself.
    const LARGE: usize = 1 << 16;
    /// Elements kept at most; beyond that the oldest go.
    const MOST: usize = 1 << 27;

    fn take(&self, n: usize) -> Option<Vec<T>> {
        let mut spare = self.0.lock().ok().filter(|_| n >= Self::LARGE)?;
        let found = spare.iter().rposition(|v| v.len() == n)?;
        Some(spare.remove(found))
    }

    fn give(&self, values: Vec<T>) {
        let Some(mut spare) = self.0.lock().ok().filter(|_| values.len() >= Self::LARGE) else { return };
        spare.push(values);
        while spare.iter().map(Vec::len).sum::<usize>() > Self::MOST {
            spare.remove(0);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self {
            Buffer::F32(v) => SPARE_F32.give(std::mem::take(v)),
            Buffer::F64(v) => SPARE_F64.give(std::mem::take(v)),
            Buffer::Gpu(_) => {}
        }
    }
}

impl Buffer {
    /// `n` numbers, and whether what they are is arbitrary; if not they are 0.
    fn arbitrary(device: &Device, n: usize) -> (Self, bool) {
        if let Place::Gpu(gpu) = device.place() {
            return (Buffer::Gpu(gpu.alloc(n)), true);
        }
        let spare = match device.dtype() {
            DType::F32 => SPARE_F32.take(n).map(Buffer::F32),
            DType::F64 => SPARE_F64.take(n).map(Buffer::F64),
        };
        let used = spare.is_some();
        let zeros = || match device.dtype() {
            DType::F32 => Buffer::F32(vec![0.0; n]),
            DType::F64 => Buffer::F64(vec![0.0; n]),
        };
        (spare.unwrap_or_else(zeros), used)
    }

    pub(crate) fn from_vec<T: Real>(values: Vec<T>) -> Self {
        // T is f32 or f64, so one of the two casts is the identity.
        match T::DTYPE {
            DType::F32 => Buffer::F32(bytemuck::allocation::cast_vec(values)),
            DType::F64 => Buffer::F64(bytemuck::allocation::cast_vec(values)),
        }
    }

    pub(crate) fn slice<T: Real>(&self) -> &[T] {
        match (self, T::DTYPE) {
            (Buffer::F32(v), DType::F32) => bytemuck::cast_slice(v),
            (Buffer::F64(v), DType::F64) => bytemuck::cast_slice(v),
            (Buffer::Gpu(_), _) => panic!("a tensor on the GPU was read by code for the CPU"),
            _ => panic!("a tensor was read in another precision than it has"),
        }
    }

    pub(crate) fn slice_mut<T: Real>(&mut self) -> &mut [T] {
        match (self, T::DTYPE) {
            (Buffer::F32(v), DType::F32) => bytemuck::cast_slice_mut(v),
            (Buffer::F64(v), DType::F64) => bytemuck::cast_slice_mut(v),
            (Buffer::Gpu(_), _) => panic!("a tensor on the GPU was written by code for the CPU"),
            _ => panic!("a tensor was written in another precision than it has"),
        }
    }
}

impl Tensor {
    /// All zeros.
    pub fn zeros(device: &Device, shape: &[usize]) -> Self {
        let (mut buffer, used) = Buffer::arbitrary(device, shape.iter().product());
        if used && device.gpu().is_none() {
            on_device!(device, T => buffer.slice_mut::<T>().fill(T::ZERO), _gpu => {});
        }
        let zeros = Self::of_buffer(device, shape, buffer);
        zeros.clear_on_gpu();
        zeros
    }

    fn of_buffer(device: &Device, shape: &[usize], buffer: Buffer) -> Self {
        Tensor { buffer: Arc::new(buffer), at: 0, shape: shape.to_vec(), device: device.clone() }
    }

    /// All equal to `value`.
    pub fn full(device: &Device, shape: &[usize], value: f64) -> Self {
        let n = shape.iter().product();
        on_device!(device, T => Self::from_vec(device, shape, vec![T::of(value); n]), gpu => {
            let y = Self::of_buffer(device, shape, Buffer::Gpu(gpu.alloc(n)));
            gpu.launch("memory", "fill", Launch::elements(n), args![y.out(), n, Arg::Real(value)]);
            y
        })
    }

    /// Memory that the caller writes whole. Debug builds fill it with NaN, so that an unwritten element shows.
    pub fn empty(device: &Device, shape: &[usize]) -> Self {
        if cfg!(debug_assertions) && device.gpu().is_none() {
            return Self::full(device, shape, f64::NAN);
        }
        Self::of_buffer(device, shape, Buffer::arbitrary(device, shape.iter().product()).0)
    }

    /// Converts and copies `values` to the device.
    #[track_caller]
    pub fn from_f64(device: &Device, shape: &[usize], values: &[f64]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{} values for shape {shape:?}", values.len());
        on_device!(
            device,
            T => Self::from_vec(device, shape, values.iter().map(|&x| T::of(x)).collect::<Vec<T>>()),
            _gpu => Self::upload(device, shape, values.iter().copied())
        )
    }

    /// Converts and copies `values` to the device.
    #[track_caller]
    pub fn from_f32(device: &Device, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{} values for shape {shape:?}", values.len());
        on_device!(
            device,
            T => Self::from_vec(device, shape, values.iter().map(|&x| T::of(x as f64)).collect::<Vec<T>>()),
            _gpu => Self::upload(device, shape, values.iter().map(|&x| x as f64))
        )
    }

    #[track_caller]
    pub(crate) fn from_vec<T: Real>(device: &Device, shape: &[usize], values: Vec<T>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{} values for shape {shape:?}", values.len());
        Self::of_buffer(device, shape, Buffer::from_vec(values))
    }

    /// A tensor on the GPU with the given values.
    fn upload(device: &Device, shape: &[usize], values: impl ExactSizeIterator<Item = f64>) -> Self {
        let y = Self::of_buffer(device, shape, Buffer::arbitrary(device, values.len()).0);
        y.send(values);
        y
    }

    /// Overwrites the values of a tensor on the GPU.
    pub(crate) fn send(&self, values: impl ExactSizeIterator<Item = f64>) {
        assert_eq!(values.len(), self.len(), "send: {} values for shape {:?}", values.len(), self.shape);
        let bytes: Vec<u8> = match self.device.dtype() {
            DType::F32 => values.flat_map(|x| (x as f32).to_ne_bytes()).collect(),
            DType::F64 => values.flat_map(f64::to_ne_bytes).collect(),
        };
        self.device.gpu().expect("a tensor on the GPU").write(self.address(), &bytes);
    }

    /// Sets a tensor on the GPU to 0; does nothing elsewhere.
    pub(crate) fn clear_on_gpu(&self) {
        if let Some(gpu) = self.device.gpu() {
            gpu.clear(self.span());
        }
    }

    /// Copies the values of `from`, which has as many, into this tensor on the GPU.
    pub(crate) fn copy_on_gpu(&self, from: &Tensor) {
        assert_eq!(self.len(), from.len(), "copy of shape {:?} to shape {:?}", from.shape, self.shape);
        let gpu = self.device.gpu().expect("a tensor on the GPU");
        gpu.copy(self.span(), from.span());
    }

    /// Where the first element is in device memory. Panics on the CPU.
    pub(crate) fn address(&self) -> u64 {
        match &*self.buffer {
            Buffer::Gpu(block) => block.address() + (self.at * self.device.dtype().bytes()) as u64,
            _ => panic!("a tensor on the CPU was given to a kernel"),
        }
    }

    /// Its part of device memory. Panics on the CPU.
    pub(crate) fn span(&self) -> Span {
        Span { address: self.address(), bytes: self.len() * self.device.dtype().bytes() }
    }

    /// The tensor as the output of a kernel. Panics on the CPU.
    pub fn out(&self) -> Arg {
        Arg::Out(self.span())
    }

    /// The bytes of a tensor on the GPU. Waits for the device.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len() * self.device.dtype().bytes()];
        self.device.gpu().expect("a tensor on the GPU").read(self.address(), &mut bytes);
        bytes
    }

    /// The values in double precision, row-major. Waits for the device; NaN if it failed (see [`Device::check`]).
    pub fn to_f64(&self) -> Vec<f64> {
        on_device!(self.device, T => self.slice::<T>().iter().map(|x| x.f64()).collect(), _gpu => {
            match self.device.dtype() {
                DType::F32 => self.to_f32().into_iter().map(f64::from).collect(),
                DType::F64 => self.bytes().as_chunks().0.iter().map(|&b| f64::from_ne_bytes(b)).collect(),
            }
        })
    }

    /// The values in single precision, row-major. Waits for the device; NaN if it failed (see [`Device::check`]).
    pub fn to_f32(&self) -> Vec<f32> {
        on_device!(self.device, T => self.slice::<T>().iter().map(|x| x.f64() as f32).collect(), _gpu => {
            match self.device.dtype() {
                DType::F32 => self.bytes().as_chunks().0.iter().map(|&b| f32::from_ne_bytes(b)).collect(),
                DType::F64 => self.to_f64().into_iter().map(|x| x as f32).collect(),
            }
        })
    }

    /// The value of a tensor with one element. Waits for the device.
    #[track_caller]
    pub fn item(&self) -> f64 {
        assert_eq!(self.len(), 1, "item() of a tensor of shape {:?}", self.shape);
        self.to_f64()[0]
    }

    /// The size along each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device that holds the memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same memory under another shape.
    #[track_caller]
    pub fn reshape(&self, shape: &[usize]) -> Tensor {
        assert_eq!(
            self.len(),
            shape.iter().product::<usize>(),
            "reshape: {:?} to {shape:?}; wanted as many elements",
            self.shape
        );
        Tensor { shape: shape.to_vec(), ..self.clone() }
    }

    /// Rows `from..from + count` of the first dimension, sharing memory.
    #[track_caller]
    pub fn rows(&self, from: usize, count: usize) -> Tensor {
        assert!(from + count <= self.shape[0], "rows {from}..{} of a tensor of shape {:?}", from + count, self.shape);
        let row: usize = self.shape[1..].iter().product();
        let shape = [&[count], &self.shape[1..]].concat();
        self.window(from * row, &shape)
    }

    /// Tensors of one shape `[…]` → `[n, …]`.
    #[track_caller]
    pub fn stack(parts: &[Tensor]) -> Tensor {
        let (first, n) = (&parts[0], parts.len());
        assert!(parts.iter().all(|p| p.shape == first.shape), "stack: the shapes differ");
        let shape = [&[n], first.shape()].concat();
        on_device!(first.device, T => {
            let values: Vec<T> = parts.iter().flat_map(|p| p.slice::<T>()).copied().collect();
            Self::from_vec(&first.device, &shape, values)
        }, _gpu => {
            let y = Self::empty(&first.device, &shape);
            for (i, part) in parts.iter().enumerate() {
                y.window(i * first.len(), &first.shape).copy_on_gpu(part);
            }
            y
        })
    }

    /// Whether every element is finite.
    pub fn is_finite(&self) -> bool {
        on_device!(
            self.device,
            T => self.slice::<T>().iter().all(|x| x.is_finite()),
            _gpu => self.to_f64().iter().all(|x| x.is_finite())
        )
    }

    /// A window of the same memory: parameters are windows of one slab.
    pub(crate) fn window(&self, at: usize, shape: &[usize]) -> Tensor {
        Tensor { at: self.at + at, shape: shape.to_vec(), ..self.clone() }
    }

    /// The values in the precision of the device, row-major: `T` is `f32` or `f64`. Panics for the other, and on a GPU.
    pub fn slice<T: Real>(&self) -> &[T] {
        &self.buffer.slice()[self.at..self.at + self.len()]
    }

    /// Write access, while nothing else shares the memory; else, and as in [`Tensor::slice`], it panics.
    pub fn slice_mut<T: Real>(&mut self) -> &mut [T] {
        let (at, n) = (self.at, self.len());
        let buffer = Arc::get_mut(&mut self.buffer).expect("this tensor is shared, so it can no longer be written");
        &mut buffer.slice_mut()[at..at + n]
    }
}

impl Arg {
    /// A tensor that may be missing: a null pointer then.
    pub fn input(tensor: Option<&Tensor>) -> Self {
        Arg::In(tensor.map_or(Span::NONE, Tensor::span))
    }
}

impl From<&Tensor> for Arg {
    fn from(tensor: &Tensor) -> Self {
        Arg::In(tensor.span())
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first: Vec<f64> = self.to_f64().into_iter().take(8).collect();
        write!(f, "Tensor{:?} {first:.4?}{}", self.shape, if self.len() > 8 { "…" } else { "" })
    }
}
