//! Writers of PyTorch files, right and wrong.

/// A pickle under construction; what is written is what is told.
#[derive(Clone, Default)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.raw(b"X")
            .raw((text.len() as u32).to_le_bytes())
            .raw(text)
    }

    pub(crate) fn int(self, value: i32) -> Self {
        self.raw(b"J").raw(value.to_le_bytes())
    }

    pub(crate) fn long(self, value: i64) -> Self {
        self.raw([0x8a, 8]).raw(value.to_le_bytes())
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n"))
    }

    /// The call that makes a tensor, with arguments as large as told.
    pub(crate) fn tensor(
        self,
        storage: (&str, &str, i64),
        offset: i64,
        shape: &[i64],
        strides: &[i64],
    ) -> Self {
        let (class, key, elements) = storage;
        let longs = |pickle: Self, values: &[i64]| {
            values
                .iter()
                .fold(pickle.raw(b"("), |pickle, &value| pickle.long(value))
                .raw(b"t")
        };
        let pickle = self
            .global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", class)
            .text(key)
            .text("cpu")
            .long(elements)
            .raw(b"tQ")
            .long(offset);
        let pickle = longs(longs(pickle, shape), strides);
        pickle
            .raw([0x89])
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }

    /// A dictionary of one tensor of four floats in storage `0`.
    pub(crate) fn good() -> Self {
        Self::new()
            .raw(b"}(")
            .text("a")
            .tensor(("FloatStorage", "0", 4), 0, &[2, 2], &[2, 1])
            .raw(b"u.")
    }
}

/// A zip file under construction.
#[derive(Clone, Default)]
pub(crate) struct Zip {
    entries: Vec<Entry>,
    /// Bytes before the end record, where the central directory lies.
    pub(crate) directory_offset: Option<u32>,
    pub(crate) count: Option<u16>,
    pub(crate) wide: bool,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) local_name: Option<String>,
    pub(crate) data: Vec<u8>,
    pub(crate) size: Option<u32>,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    pub(crate) offset: Option<u32>,
}

impl Zip {
    /// What `torch.save` writes around a pickle and its storages.
    pub(crate) fn of(pickle: &Pickle, storages: &[(&str, &[u8])]) -> Self {
        let mut zip = Self::default().entry("model/data.pkl", &pickle.0);
        for (key, bytes) in storages {
            zip = zip.entry(&format!("model/data/{key}"), bytes);
        }
        zip
    }

    pub(crate) fn good() -> Self {
        Self::of(
            &Pickle::good(),
            &[("0", &super::f32_bytes(&[1., 2., 3., 4.]))],
        )
    }

    pub(crate) fn entry(self, name: &str, data: &[u8]) -> Self {
        self.with(name, data, |_| {})
    }

    pub(crate) fn with(mut self, name: &str, data: &[u8], change: impl FnOnce(&mut Entry)) -> Self {
        let mut entry = Entry {
            name: name.to_owned(),
            local_name: None,
            data: data.to_vec(),
            size: None,
            method: 0,
            flags: 0,
            offset: None,
        };
        change(&mut entry);
        self.entries.push(entry);
        self
    }

    pub(crate) fn change(mut self, index: usize, change: impl FnOnce(&mut Entry)) -> Self {
        change(&mut self.entries[index]);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let mut directory = Vec::new();
        for entry in &self.entries {
            let offset = entry.offset.unwrap_or(file.len() as u32);
            let size = entry.size.unwrap_or(entry.data.len() as u32);
            let local_name = entry.local_name.as_ref().unwrap_or(&entry.name);
            let fields = |name: &str, sizes: (u32, u32), extra: usize| {
                let mut bytes = Vec::new();
                for field in [0, entry.flags, entry.method, 0, 0] {
                    bytes.extend(field.to_le_bytes());
                }
                for field in [0, sizes.0, sizes.1] {
                    bytes.extend(field.to_le_bytes());
                }
                bytes.extend((name.len() as u16).to_le_bytes());
                bytes.extend((extra as u16).to_le_bytes());
                bytes
            };
            file.extend(b"PK\x03\x04");
            file.extend(fields(local_name, (size, size), 0));
            file.extend(local_name.as_bytes());
            file.extend(&entry.data);
            directory.extend(b"PK\x01\x02\0\0");
            let mut extra = Vec::new();
            if self.wide {
                extra.extend([1, 0, 24, 0]);
                for value in [size, size, offset] {
                    extra.extend(u64::from(value).to_le_bytes());
                }
                directory.extend(fields(&entry.name, (u32::MAX, u32::MAX), extra.len()));
                directory.extend([0; 10]);
                directory.extend(u32::MAX.to_le_bytes());
            } else {
                directory.extend(fields(&entry.name, (size, size), 0));
                directory.extend([0; 10]);
                directory.extend(offset.to_le_bytes());
            }
            directory.extend(entry.name.as_bytes());
            directory.extend(extra);
        }
        let start = self.directory_offset.unwrap_or(file.len() as u32);
        let length = directory.len() as u32;
        file.extend(directory);
        let count = self.count.unwrap_or(self.entries.len() as u16);
        let record = file.len() as u64;
        if self.wide {
            file.extend(b"PK\x06\x06");
            file.extend(44u64.to_le_bytes());
            file.extend([0; 12]);
            for value in [u64::from(count), count.into(), length.into(), start.into()] {
                file.extend(value.to_le_bytes());
            }
            file.extend(b"PK\x06\x07\0\0\0\0");
            file.extend(record.to_le_bytes());
            file.extend(1u32.to_le_bytes());
        }
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend(count.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(if self.wide { u32::MAX } else { length }.to_le_bytes());
        file.extend(if self.wide { u32::MAX } else { start }.to_le_bytes());
        file.extend([0, 0]);
        file
    }
}
