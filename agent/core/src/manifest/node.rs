//! YAML text to a tree whose every value knows its place.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Place, Problem};

/// Deepest nesting; a complete Pod needs about ten.
pub(super) const MAX_DEPTH: usize = 64;
/// Most values in a file, aliases expanded (ten bytes a value at [`super::MAX_BYTES`]).
pub(super) const MAX_VALUES: usize = 800_000;

/// A value and where it begins.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// YAML 1.2 core schema, but for [`Value::Octal`].
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Octal digits behind a nought, as `0644`: YAML 1.1, which Kubernetes' own tools read, takes it for 420, YAML 1.2 for 644.
    Octal(String),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A mapping's key.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Place,
}

/// One step into a tree.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Node {
    /// The value of a key.
    pub(super) fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a key.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Place of what lies at the end of a path, or of the deepest part of the path that is there.
    pub(super) fn place_of(&self, path: &[Step<'_>]) -> Place {
        let mut here = self;
        for step in path {
            let next = match (step, &here.value) {
                (Step::Key(name), Value::Map(_)) => here.get(name),
                (Step::Index(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(node) => here = node,
                None => break,
            }
        }
        here.place
    }
}

type Fault = (Place, Problem);

/// A container that is still open.
struct Open {
    place: Place,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, lines: HashMap<String, u32>, key: Option<Key> },
}

/// All documents of a text; empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Fault> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let place = place(error.marker().line(), error.marker().col());
            (place, Problem::Syntax { why: error.info().to_owned() })
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let at = place(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(_) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref()).map_err(|problem| (at, problem))?;
                self.finish(Node { place: at, value }, anchor, 1)?;
            }
            Event::SequenceStart(anchor, tag) => {
                container_tag(tag.as_deref(), "seq").map_err(|problem| (at, problem))?;
                self.push(at, anchor, OpenKind::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                container_tag(tag.as_deref(), "map").map_err(|problem| (at, problem))?;
                self.push(at, anchor, OpenKind::Map { entries: Vec::new(), lines: HashMap::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let value = match open.kind {
                        OpenKind::List(items) => Value::List(items),
                        OpenKind::Map { entries, .. } => Value::Map(entries),
                    };
                    self.finish(Node { place: open.place, value }, open.anchor, 1)?;
                }
            }
            Event::Alias(anchor) => {
                // An alias inside its own anchor is not there yet: cycles end here.
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err((at, Problem::BadAlias));
                };
                self.finish(node, 0, size)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, place: Place, anchor: usize, kind: OpenKind) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err((place, Problem::TooDeep { max: MAX_DEPTH }));
        }
        self.open.push(Open { place, anchor, kind });
        Ok(())
    }

    /// Puts a complete value where it belongs. `size` is what it adds to the count of values.
    fn finish(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Fault> {
        let at = node.place;
        self.values = self.values.saturating_add(size);
        if self.values > MAX_VALUES {
            return Err((at, Problem::TooManyValues { max: MAX_VALUES }));
        }
        if anchor != 0 {
            let (size, depth) = measure(&node);
            if depth + self.open.len() > MAX_DEPTH {
                return Err((at, Problem::TooDeep { max: MAX_DEPTH }));
            }
            self.anchors.insert(anchor, (node.clone(), size));
        } else if size > 1 && measure(&node).1 + self.open.len() > MAX_DEPTH {
            return Err((at, Problem::TooDeep { max: MAX_DEPTH }));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => {
                if node.value != Value::Null {
                    self.documents.push(node);
                }
            }
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, lines, key }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let Value::Text(name) = node.value else { return Err((at, Problem::BadKey)) };
                    if let Some(first) = lines.insert(name.clone(), at.line) {
                        return Err((at, Problem::DuplicateKey { key: name, first }));
                    }
                    *key = Some(Key { name, place: at });
                }
            },
        }
        Ok(())
    }
}

/// Number of values and depth of a tree that is at most [`MAX_DEPTH`] deep.
fn measure(node: &Node) -> (usize, usize) {
    let join = |(size, depth): (usize, usize), (s, d): (usize, usize)| (size + s, depth.max(d + 1));
    match &node.value {
        Value::List(items) => items.iter().map(measure).fold((1, 1), join),
        Value::Map(entries) => entries.iter().map(|(_, node)| measure(node)).fold((1, 1), join),
        _ => (1, 0),
    }
}

fn place(line: usize, column: usize) -> Place {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: number(line), column: number(column).saturating_add(1) }
}

fn container_tag(tag: Option<&Tag>, own: &str) -> Result<(), Problem> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == own => Ok(()),
        Some(tag) => Err(Problem::Tag { tag: tag.to_string() }),
    }
}

/// YAML 1.2.2, section 10.3.2, "Tag Resolution" of the core schema.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, Problem> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => return Ok(Value::Text(text.to_owned())),
        Some(tag) => return Err(Problem::Tag { tag: tag.to_string() }),
        None => {}
    }
    if style != ScalarStyle::Plain {
        return Ok(Value::Text(text.to_owned()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Text(text.to_owned())),
    })
}

fn number(text: &str) -> Option<Value> {
    if let Some(hex) = text.strip_prefix("0x") {
        return whole(hex, 16);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return whole(octal, 8);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    // Rust reads "inf", "nan" and "infinity" as numbers; the core schema does not.
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') || !digits.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let octal = |rest: &str| !rest.is_empty() && rest.chars().all(|c| ('0'..='7').contains(&c));
    if digits.strip_prefix('0').is_some_and(octal) {
        return Some(Value::Octal(text.to_owned()));
    }
    match text.parse::<i64>() {
        Ok(number) => Some(Value::Int(number)),
        Err(_) => text.parse::<f64>().ok().map(Value::Float),
    }
}

fn whole(digits: &str, radix: u32) -> Option<Value> {
    // `from_str_radix` takes a sign, the core schema does not.
    let fine = digits.starts_with(|c: char| c.is_digit(radix));
    fine.then(|| i64::from_str_radix(digits, radix).ok().map(Value::Int)).flatten()
}
