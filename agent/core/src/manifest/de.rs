//! serde over the positioned tree: every error gets its place, every field that a type skips is reported.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::node::{Key, Node, Value};
use super::{Mismatch, Place};

/// A type error, with the path to it.
#[derive(Debug)]
pub(super) struct Error {
    place: Option<Place>,
    path: String,
    why: Mismatch,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.why)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let why = message.to_string();
        // The library's words are about its own numbers.
        let beyond = why.contains("not in the required range");
        let why = if beyond { "it lies beyond the times that are counted here".to_owned() } else { why };
        Mismatch::Other { why }.into()
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = name_of(unexpected);
        let expected = expected.to_string();
        // serde's words are Rust's.
        let expected = match expected.as_str() {
            "i32" | "i64" => "a whole number",
            "u16" => "a whole number from 0 to 65535",
            "u32" => "a whole number from 0 to 4294967295",
            "a sequence" => "a list",
            other => other,
        };
        let expected = expected.to_owned();
        match unexpected {
            Unexpected::Bool(_) | Unexpected::Signed(_) | Unexpected::Float(_) if expected.contains("string") => {
                Mismatch::Unquoted { found, expected }.into()
            }
            _ => Mismatch::Type { found, expected }.into(),
        }
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Mismatch::Missing { field }.into()
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Mismatch::Word { found: found.chars().take(80).collect(), known }.into()
    }
}

impl From<Mismatch> for Error {
    fn from(why: Mismatch) -> Self {
        Self { place: None, path: String::new(), why }
    }
}

/// What a value is, and what it should be.
pub(super) fn mismatch(node: &Node, expected: &str) -> Mismatch {
    let found = match &node.value {
        Value::Null => name_of(Unexpected::Unit),
        Value::Bool(value) => name_of(Unexpected::Bool(*value)),
        Value::Int(value) => name_of(Unexpected::Signed(*value)),
        Value::Octal(text) => format!("the number {}", text.chars().take(80).collect::<String>()),
        Value::Float(value) => name_of(Unexpected::Float(*value)),
        Value::Text(text) => name_of(Unexpected::Str(text)),
        Value::List(_) => name_of(Unexpected::Seq),
        Value::Map(_) => name_of(Unexpected::Map),
    };
    Mismatch::Type { found, expected: expected.to_owned() }
}

fn name_of(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => format!("the number {value}"),
        // With its point: that it has one is what is wrong with it.
        Unexpected::Float(value) => format!("the number {value:?}"),
        Unexpected::Str(text) => format!("the text {:?}", text.chars().take(80).collect::<String>()),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "an object".to_owned(),
        other => other.to_string(),
    }
}

impl Error {
    fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    fn under(mut self, step: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{step}{dot}{}", self.path);
        self
    }

    /// Place, path and reason.
    pub(super) fn parts(self) -> (Place, String, Mismatch) {
        (self.place.unwrap_or_default(), self.path, self.why)
    }
}

/// A field that the type does not have.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) place: Place,
    pub(super) path: String,
}

/// Reads a `T` from a tree; fields that `T` skips are in the second part.
pub(super) fn read<'a, T: de::Deserialize<'a>>(node: &'a Node) -> (Result<T, Error>, Vec<Unknown>) {
    let unknown = RefCell::default();
    let value = T::deserialize(Reader { node, key: None, path: &Path::Root, unknown: &unknown });
    (value, unknown.into_inner())
}

/// The way from the root, on the stack.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, name) => f.write_str(name),
            Self::Key(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Reader<'a, 'p> {
    node: &'a Node,
    /// Place of the key that led here.
    key: Option<Place>,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<Unknown>>,
}

impl<'a> Reader<'a, '_> {
    fn any<V: Visitor<'a>>(&self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Octal(text) => Err(Mismatch::Octal { text: text.chars().take(80).collect() }.into()),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => {
                visitor.visit_seq(Items { items: items.iter(), index: 0, path: self.path, unknown: self.unknown })
            }
            Value::Map(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                value: None,
                path: self.path,
                unknown: self.unknown,
            }),
        }
    }
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.any(visitor).map_err(|error| error.at(self.node.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let place = self.node.place;
        match &self.node.value {
            Value::Text(text) => {
                let variant: de::value::StrDeserializer<'_, Error> = text.as_str().into_deserializer();
                visitor.visit_enum(variant).map_err(|error| error.at(place))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    /// An object only: serde's derives would take a list for its fields in order.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Map(_) => self.deserialize_any(visitor),
            _ => Err(Error::from(mismatch(self.node, "an object")).at(self.node.place)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let place = self.key.unwrap_or(self.node.place);
        self.unknown.borrow_mut().push(Unknown { place, path: self.path.to_string() });
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier
    }
}

struct Items<'a, 'p> {
    items: std::slice::Iter<'a, Node>,
    index: usize,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<Unknown>>,
}

impl<'a> SeqAccess<'a> for Items<'a, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        let path = Path::Index(self.path, index);
        let reader = Reader { node, key: None, path: &path, unknown: self.unknown };
        seed.deserialize(reader).map(Some).map_err(|error| error.at(node.place).under(&format!("[{index}]")))
    }
}

struct Entries<'a, 'p> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a (Key, Node)>,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<Unknown>>,
}

impl<'a> MapAccess<'a> for Entries<'a, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name: de::value::BorrowedStrDeserializer<'_, Error> = de::value::BorrowedStrDeserializer::new(&key.name);
        seed.deserialize(name).map(Some).map_err(|error| error.at(key.place))
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, node)) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        let path = Path::Key(self.path, &key.name);
        let reader = Reader { node, key: Some(key.place), path: &path, unknown: self.unknown };
        seed.deserialize(reader).map_err(|error| error.at(node.place).under(&key.name))
    }
}
