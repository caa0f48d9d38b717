//! Configuration as written in YAML: a tree of texts, lists and maps, each with its line. The only file that knows YAML.
//! Runs at start (the file, and those environment variables that hold lists or maps). It knows no keys and no types:
//! a scalar stays the text that was written, so that `0660` and `64MiB` are read by whoever knows the unit. Error
//! messages never carry source text: the file may hold a password inside a URL.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A value and the line (from 1) it stands on; 0 where it did not come from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    pub(super) fn text(text: impl Into<String>) -> Node {
        Node { line: 0, value: Value::Text(text.into()) }
    }

    pub(super) fn list(items: impl IntoIterator<Item = String>) -> Node {
        Node { line: 0, value: Value::List(items.into_iter().map(Node::text).collect()) }
    }
}

/// What is wrong with the YAML, and on which line if that is known.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: Option<u64>,
    pub(super) message: String,
}

/// Reads one YAML document. Nesting and alias expansion are bounded by serde-saphyr's default budget.
pub(super) fn parse(source: &str) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let tree: Tree = serde_saphyr::from_str_with_options(source, options).map_err(syntax_error)?;
    Ok(tree.into_node(source))
}

/// YAML of our own as JSON.
pub(super) fn as_json(source: &str) -> Result<serde_json::Value, SyntaxError> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(source, options).map_err(syntax_error)
}

/// A text as a YAML scalar that reads back as the same text. JSON's strings are YAML's double-quoted ones.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The library's sentence without the position, which stands in front of ours; in our words where its own speak to
/// programmers.
fn syntax_error(error: serde_saphyr::Error) -> SyntaxError {
    use serde_saphyr::Error;
    let line = error.location().map(|at| at.line()).filter(|line| *line > 0);
    let message = match error.without_snippet() {
        Error::DuplicateMappingKey { .. } => "the same key is given twice".to_owned(),
        Error::MultipleDocuments { .. } => "more than one document; remove the line ---".to_owned(),
        other => {
            let text = other.to_string();
            let first = text.lines().next().unwrap_or("not valid");
            first.split(" at line ").next().unwrap_or(first).to_owned()
        }
    };
    SyntaxError { line, message }
}

/// What serde sees, before numbers are replaced by the text they were written as.
#[derive(Deserialize)]
#[serde(transparent)]
struct Tree(Spanned<Shape>);

enum Shape {
    Null,
    Text(String),
    /// A plain number: `0660` must not become 660, so its text is taken from the source.
    Number(String),
    List(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
}

impl Tree {
    fn into_node(self, source: &str) -> Node {
        let span = self.0.defined.span();
        let value = match self.0.value {
            Shape::Null => Value::Null,
            Shape::Text(text) => Value::Text(text),
            Shape::Number(number) => Value::Text(written(source, span).unwrap_or(number)),
            Shape::List(items) => Value::List(items.into_iter().map(|i| i.into_node(source)).collect()),
            Shape::Map(pairs) => {
                let pair = |(k, v): (Tree, Tree)| (k.into_node(source), v.into_node(source));
                Value::Map(pairs.into_iter().map(pair).collect())
            }
        };
        Node { line: self.0.referenced.line(), value }
    }
}

fn written(source: &str, span: serde_saphyr::Span) -> Option<String> {
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let len = usize::try_from(span.byte_len()?).ok()?;
    let text = source.get(start..start.checked_add(len)?)?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Shape, E> {
        Ok(Shape::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
        Ok(Shape::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
        Ok(Shape::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Shape, E> {
        Ok(Shape::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Shape, E> {
        Ok(Shape::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Shape, E> {
        Ok(Shape::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Shape, E> {
        Ok(Shape::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Shape, E> {
        Ok(Shape::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Shape::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut pairs: Vec<(Tree, Tree)> = Vec::new();
        while let Some(key) = map.next_key::<Tree>()? {
            pairs.push((key, map.next_value()?));
        }
        Ok(Shape::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_at<'n>(node: &'n Node, key: &str) -> (&'n str, u64) {
        let Value::Map(pairs) = &node.value else { panic!("no map: {node:?}") };
        let found = pairs.iter().find(|(k, _)| k.value == Value::Text(key.to_owned()));
        match found.map(|(_, v)| (&v.value, v.line)) {
            Some((Value::Text(text), line)) => (text, line),
            other => panic!("{key}: {other:?}"),
        }
    }

    #[test]
    fn scalars_stay_as_written_and_know_their_line() {
        let tree = parse("# head\nmode: 0660\noctal: 0o660\nfloat: 1.50\noff: off\nno: false\nquoted: \"12\"\nbig: 99999999999999999999999\nunit: 64MiB # c\nneg: -1\n").unwrap();
        assert_eq!(text_at(&tree, "mode"), ("0660", 2));
        assert_eq!(text_at(&tree, "octal"), ("0o660", 3));
        assert_eq!(text_at(&tree, "float"), ("1.50", 4));
        assert_eq!(text_at(&tree, "off"), ("off", 5));
        assert_eq!(text_at(&tree, "no"), ("false", 6));
        assert_eq!(text_at(&tree, "quoted"), ("12", 7));
        assert_eq!(text_at(&tree, "big"), ("99999999999999999999999", 8));
        assert_eq!(text_at(&tree, "unit"), ("64MiB", 9));
        assert_eq!(text_at(&tree, "neg"), ("-1", 10));
    }

    #[test]
    fn numbers_stay_as_written_behind_letters_of_several_bytes() {
        let tree = parse("# größer €\na: ü\nmode: 0660\n").unwrap();
        assert_eq!(text_at(&tree, "mode"), ("0660", 3));
    }

    #[test]
    fn anchors_and_flow_style_are_understood() {
        let tree = parse("a: &x 0660\nb: *x\n").unwrap();
        assert_eq!(text_at(&tree, "b").0, "0660");
        let flow = parse("listen: {tcp: [\"127.0.0.1:1\", ~]}").unwrap();
        let Value::Map(pairs) = flow.value else { panic!() };
        assert!(
            matches!(&pairs[0].1.value, Value::Map(inner) if matches!(&inner[0].1.value, Value::List(l) if l.len() == 2))
        );
    }

    #[test]
    fn an_empty_file_is_null() {
        assert_eq!(parse("").unwrap().value, Value::Null);
        assert_eq!(parse("# only a comment\n").unwrap().value, Value::Null);
    }

    #[test]
    fn errors_name_the_line_and_never_quote_the_file() {
        for source in [
            "a: 1\nurl: \"redis://:hunter2@x\nb: 2\n",
            "a: 1\nurl: [redis://:hunter2@x\nb: }\n",
            "a: 1\na: redis://:hunter2@x\n",
            "a: 1\n  url: redis://:hunter2@x\n",
            "a: 1\n---\nb: hunter2\n",
            "a: *hunter2\n",
        ] {
            let error = parse(source).unwrap_err();
            assert!(error.line.is_some(), "{source}: {error:?}");
            if !source.contains("*hunter2") {
                assert!(!error.message.contains("hunter2"), "{error:?}");
            }
        }
    }

    #[test]
    fn quoted_text_reads_back() {
        for text in ["", "a b", "it's", "\"", "\\", "\n", "null", "0660", "€", "# no"] {
            let tree = parse(&format!("k: {}", quoted(text))).unwrap();
            assert_eq!(text_at(&tree, "k").0, text);
        }
    }
}
