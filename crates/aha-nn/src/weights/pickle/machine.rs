//! The pickle machine: instructions and names that tensors need, nothing that runs code.

use std::collections::HashMap;

use super::super::catalog::element_count;
use super::super::error::{Result, WeightsError, printable};
use super::super::reader::Reader;
use super::super::stored::StoredType;
use super::globals::Global;

/// No tensor has more dimensions.
const MAX_DIMENSIONS: usize = 16;

/// What `torch.save` calls its references to storages.
const STORAGE_TAG: &str = "storage";

/// A value on the stack. Containers lie in tables of the machine, so that values are small, a program cannot build a
/// structure that ends the process when it is dropped, and cycles are harmless.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Integer(i64),
    Tuple(usize),
    Dictionary(usize),
    Tensor(usize),
    Global(Global),
    Storage(Storage<'a>),
    /// What no tensor is made of (numbers, lists, none): kept only as its kind.
    Other(&'static str),
}

impl Value<'_> {
    /// What the value is, for messages.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "an integer",
            Self::Tuple(_) => "a tuple",
            Self::Dictionary(_) => "a dictionary",
            Self::Tensor(_) => "a tensor",
            Self::Global(_) => "a name",
            Self::Storage(_) => "a storage",
            Self::Other(kind) => kind,
        }
    }
}

/// A reference to an entry that holds the elements of tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    /// The entry is `data/<key>`.
    pub(super) key: &'a str,
    /// The type of the elements; none for bytes.
    stored: Option<StoredType>,
    /// How many elements it is said to have.
    pub(super) elements: usize,
    /// Bytes of all elements; none when that overflows.
    pub(super) bytes: Option<usize>,
}

/// A tensor: elements of a storage, seen with a shape and strides.
#[derive(Debug)]
pub(super) struct TensorView<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) stored: StoredType,
    /// The first element.
    pub(super) offset: usize,
    /// One past the last element.
    pub(super) end: usize,
    pub(super) shape: Vec<usize>,
    /// Elements between neighbours, by dimension.
    pub(super) strides: Vec<usize>,
}

/// What a program leaves.
#[derive(Debug)]
pub(super) struct Program<'a> {
    pub(super) result: Value<'a>,
    pub(super) dictionaries: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(super) tensors: Vec<TensorView<'a>>,
}

/// Reads a program, instruction by instruction.
pub(super) struct Machine<'a> {
    reader: Reader<'a>,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    tuples: Vec<Box<[Value<'a>]>>,
    dictionaries: Vec<Vec<(Value<'a>, Value<'a>)>>,
    tensors: Vec<TensorView<'a>>,
}

impl<'a> Machine<'a> {
    /// A machine before the first instruction of what `reader` holds.
    pub(super) fn new(reader: Reader<'a>) -> Self {
        Self {
            reader,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            tuples: Vec::new(),
            dictionaries: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Result<Program<'a>> {
        self.check_protocol()?;
        loop {
            let at = self.reader.clone();
            let opcode = self.reader.u8("an instruction")?;
            if opcode == b'.' {
                break;
            }
            self.step(opcode).map_err(|reason| reason.at(&at))?;
        }
        if self.reader.remaining() > 0 {
            return Err(self
                .reader
                .error("more follows after the end of the pickle"));
        }
        match self.stack.as_slice() {
            [result] if self.marks.is_empty() => Ok(Program {
                result: *result,
                dictionaries: self.dictionaries,
                tensors: self.tensors,
            }),
            stack => Err(self.reader.error(format!(
                "the pickle ends with {} values instead of one",
                stack.len()
            ))),
        }
    }

    fn check_protocol(&mut self) -> Result<()> {
        let at = self.reader.clone();
        if self.reader.u8("the pickle")? != 0x80 {
            return Err(at.error("the pickle does not begin with its protocol"));
        }
        match self.reader.u8("the protocol")? {
            2..=5 => Ok(()),
            other => Err(at.error(format!(
                "the pickle has protocol {other}; torch.save writes 2 to 5"
            ))),
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            // Frames only help reading ahead.
            0x95 => drop(self.reader.u64("a frame")?),
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push_dictionary(),
            b']' => self.stack.push(Value::Other("a list")),
            b')' => self.push_tuple(Vec::new()),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items);
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x84..opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_tuple(items);
            }
            b'N' => self.stack.push(Value::Other("none")),
            0x88 | 0x89 => self.stack.push(Value::Other("a truth value")),
            b'J' => {
                let value = self.reader.i32("an integer")?;
                self.stack.push(Value::Integer(value.into()));
            }
            b'K' => {
                let value = self.reader.u8("an integer")?;
                self.stack.push(Value::Integer(value.into()));
            }
            b'M' => {
                let value = self.reader.u16("an integer")?;
                self.stack.push(Value::Integer(value.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.reader.f64("a number")?;
                self.stack.push(Value::Other("a number"));
            }
            b'X' => {
                let length = self.reader.u32("a text's length")?;
                self.text(length.into())?;
            }
            0x8c => {
                let length = self.reader.u8("a text's length")?;
                self.text(length.into())?;
            }
            0x8d => {
                let length = self.reader.u64("a text's length")?;
                self.text(length)?;
            }
            b'q' => {
                let slot = self.reader.u8("a slot")?;
                self.memorise(slot.into())?;
            }
            b'r' => {
                let slot = self.reader.u32("a slot")?;
                self.memorise(slot.into())?;
            }
            0x94 => self.memorise(self.memo.len() as u64)?,
            b'h' => {
                let slot = self.reader.u8("a slot")?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = self.reader.u32("a slot")?;
                self.recall(slot.into())?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push_global(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.push_global(module, name)?,
                (name, _) => return fault(format!("a name is {} instead of a text", name.kind())),
            },
            b'Q' => {
                let reference = self.pop()?;
                let storage = self.storage(reference)?;
                self.stack.push(Value::Storage(storage));
            }
            b'R' => self.reduce()?,
            b'b' => self.set_attributes()?,
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            b'a' => {
                let _item = self.pop()?;
                self.expect_list()?;
            }
            b'e' => {
                let _items = self.pop_to_mark()?;
                self.expect_list()?;
            }
            other => {
                return fault(format!(
                    "the instruction {other:#04x} is not one that tensors need; the file could run code and is refused"
                ));
            }
        }
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value<'a>>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items.into_boxed_slice());
    }

    fn push_dictionary(&mut self) {
        self.stack.push(Value::Dictionary(self.dictionaries.len()));
        self.dictionaries.push(Vec::new());
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        match Global::find(module, name) {
            Some(global) => {
                self.stack.push(Value::Global(global));
                Ok(())
            }
            None => fault(format!(
                "it asks for `{}.{}`, which tensors do not need; the file could run code and is refused",
                printable(module),
                printable(name)
            )),
        }
    }

    fn long(&mut self) -> Result<(), Fault> {
        let length = self.reader.u8("an integer's length")?;
        let bytes = self.reader.bytes(length.into(), "an integer")?;
        let mut wide = match bytes.last() {
            Some(last) if last & 0x80 != 0 => [0xff; 8],
            _ => [0; 8],
        };
        let value = match wide.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Integer(i64::from_le_bytes(wide))
            }
            None => Value::Other("a large integer"),
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<(), Fault> {
        match std::str::from_utf8(self.reader.bytes(length, "a text")?) {
            Ok(text) => {
                self.stack.push(Value::Text(text));
                Ok(())
            }
            Err(error) => fault(format!("a text is not UTF-8 ({error})")),
        }
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        const LONGEST: usize = 256;
        let mut ahead = self.reader.clone();
        let mut length = 0;
        while ahead.u8("a name")? != b'\n' {
            length += 1;
            if length > LONGEST {
                return fault(format!("a name is longer than {LONGEST} bytes"));
            }
        }
        let line = self.reader.bytes(length as u64, "a name")?;
        self.reader.u8("the end of a name")?;
        std::str::from_utf8(line).or_else(|_| fault("a name is not UTF-8"))
    }

    /// The topmost value, which must lie above the last mark.
    fn pop(&mut self) -> Result<Value<'a>, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return fault("a value is missing");
        }
        self.stack
            .pop()
            .map_or_else(|| fault("a value is missing"), Ok)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, Fault> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => fault("a mark is missing"),
        }
    }

    fn top(&self) -> Result<Value<'a>, Fault> {
        self.stack
            .last()
            .copied()
            .map_or_else(|| fault("a value is missing"), Ok)
    }

    fn memorise(&mut self, slot: u64) -> Result<(), Fault> {
        let value = self.top()?;
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: u64) -> Result<(), Fault> {
        match self.memo.get(&slot) {
            Some(value) => {
                self.stack.push(*value);
                Ok(())
            }
            None => fault(format!("slot {slot} was never filled")),
        }
    }

    fn expect_list(&self) -> Result<(), Fault> {
        match self.top()? {
            Value::Other("a list") => Ok(()),
            other => fault(format!("{} takes no items", other.kind())),
        }
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<(), Fault> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return fault("a key has no value");
        }
        let top = self.top()?;
        let entries = match top {
            Value::Dictionary(number) => self.dictionaries.get_mut(number),
            _ => None,
        };
        match entries {
            Some(entries) => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            None => fault(format!("{} takes no entries", top.kind())),
        }
    }

    /// Attributes of a dictionary (`_metadata` of a state) change no tensor; nothing else here has any.
    fn set_attributes(&mut self) -> Result<(), Fault> {
        let _attributes = self.pop()?;
        match self.top()? {
            Value::Dictionary(_) => Ok(()),
            other => fault(format!("{} takes no attributes", other.kind())),
        }
    }

    /// A call of a name with a tuple of arguments.
    fn reduce(&mut self) -> Result<(), Fault> {
        let arguments = self.pop()?;
        let arguments = self.tuple(arguments, "the arguments of a call")?.to_vec();
        let Value::Global(function) = self.pop()? else {
            return fault("what is called is no name");
        };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push_dictionary(),
            (Global::Size, &[size @ Value::Tuple(_)]) => self.stack.push(size),
            // Storage, offset, shape, strides; whether it was trained, hooks and metadata change no value.
            (
                Global::RebuildTensor,
                &[storage, offset, shape, strides, _, _]
                | &[storage, offset, shape, strides, _, _, _],
            ) => {
                self.push_tensor(storage, offset, shape, strides, None)?;
            }
            (
                Global::RebuildTypedTensor,
                &[storage, offset, shape, strides, _, _, dtype]
                | &[storage, offset, shape, strides, _, _, dtype, _],
            ) => {
                let Value::Global(Global::Dtype(stored)) = dtype else {
                    return fault(format!("a tensor's type is {}", dtype.kind()));
                };
                self.push_tensor(storage, offset, shape, strides, Some(stored))?;
            }
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => self.stack.push(tensor),
            (function, arguments) => {
                return fault(format!(
                    "{function:?} is called with {} arguments that do not fit it",
                    arguments.len()
                ));
            }
        }
        Ok(())
    }

    fn push_tensor(
        &mut self,
        storage: Value<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
        stored: Option<StoredType>,
    ) -> Result<(), Fault> {
        let Value::Storage(storage) = storage else {
            return fault(format!("a tensor's storage is {}", storage.kind()));
        };
        let Some(stored) = stored.or(storage.stored) else {
            return fault("a tensor of untyped bytes does not tell its type");
        };
        let offset = size(offset, "a tensor's offset")?;
        let shape = self.sizes(shape, "a tensor's shape")?;
        let strides = self.sizes(strides, "a tensor's strides")?;
        if shape.len() != strides.len() {
            return fault(format!(
                "a tensor has {} dimensions but {} strides",
                shape.len(),
                strides.len()
            ));
        }
        let available = storage
            .bytes
            .map_or(0, |bytes| bytes / stored.block_bytes());
        let end = end_of(offset, &shape, &strides).filter(|&end| end <= available);
        // More elements than the storage has are repeated ones: kilobytes would stand for any amount of memory.
        let count = element_count(&shape).filter(|&count| count <= available);
        let (Some(end), Some(_)) = (end, count) else {
            return fault(format!(
                "a tensor of shape {shape:?} with strides {strides:?} from element {offset} does not fit its storage \
                 of {available} elements"
            ));
        };
        self.stack.push(Value::Tensor(self.tensors.len()));
        self.tensors.push(TensorView {
            storage,
            stored,
            offset,
            end,
            shape,
            strides,
        });
        Ok(())
    }

    /// A reference `("storage", class, key, device, elements)`.
    fn storage(&self, reference: Value<'a>) -> Result<Storage<'a>, Fault> {
        let &[
            Value::Text(STORAGE_TAG),
            Value::Global(Global::Storage(stored)),
            Value::Text(key),
            _,
            elements,
        ] = self.tuple(reference, "a reference to a storage")?
        else {
            return fault("a reference to a storage does not have its five parts");
        };
        let elements = size(elements, "the elements of a storage")?;
        let item = stored.map_or(1, StoredType::block_bytes);
        Ok(Storage {
            key,
            stored,
            elements,
            bytes: elements.checked_mul(item),
        })
    }

    fn tuple(&self, value: Value<'a>, what: &str) -> Result<&[Value<'a>], Fault> {
        match value {
            Value::Tuple(number) => match self.tuples.get(number) {
                Some(items) => Ok(items),
                None => fault(format!("{what} is missing")),
            },
            other => fault(format!("{what} is {} instead of a tuple", other.kind())),
        }
    }

    fn sizes(&self, value: Value<'a>, what: &str) -> Result<Vec<usize>, Fault> {
        let items = self.tuple(value, what)?;
        if items.len() > MAX_DIMENSIONS {
            return fault(format!(
                "{what} has {} dimensions, more than {MAX_DIMENSIONS}",
                items.len()
            ));
        }
        items.iter().map(|&item| size(item, what)).collect()
    }
}

fn size(value: Value<'_>, what: &str) -> Result<usize, Fault> {
    match value {
        Value::Integer(value) => {
            usize::try_from(value).or_else(|_| fault(format!("{what} holds {value}")))
        }
        other => fault(format!("{what} holds {}", other.kind())),
    }
}

/// One past the last element that a view touches, or none when that overflows.
fn end_of(offset: usize, shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(offset);
    }
    shape
        .iter()
        .zip(strides)
        .try_fold(offset, |last, (&size, &stride)| {
            last.checked_add((size - 1).checked_mul(stride)?)
        })?
        .checked_add(1)
}

/// Why an instruction is refused; its place is added where the instruction is known.
enum Fault {
    Reason(String),
    Read(WeightsError),
}

impl Fault {
    fn at(self, reader: &Reader<'_>) -> WeightsError {
        match self {
            Self::Reason(reason) => reader.error(reason),
            Self::Read(error) => error,
        }
    }
}

impl From<WeightsError> for Fault {
    fn from(error: WeightsError) -> Self {
        Self::Read(error)
    }
}

fn fault<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Reason(reason.into()))
}
