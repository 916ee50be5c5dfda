//! The reference of the wire, written from the proto files and their comments.

use std::collections::HashMap;
use std::fmt::Write;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};

/// The package that is ours, as types are named in it.
const PACKAGE: &str = ".phalanx.v1.";
/// What only agents speak is nobody's to call.
const INTERNAL: &str = "phalanx/v1/agents.proto";
const HEAD: &str = "# gRPC reference

Package `phalanx.v1`, generated from
[the proto files](https://github.com/phalanx-ml/phalanx/tree/main/api/proto/phalanx/v1) by `cargo xtask proto`. Calls carry
the token as `authorization: Bearer TOKEN`; reflection and health are on. Errors are `google.rpc.Status` with details, as
[HTTP](../http.md#errors) lists them. A message has at most 4 MiB.
";

// Field numbers of descriptor.proto, which places of comments are made of.
const MESSAGES: i32 = 4;
const SERVICES: i32 = 6;
const MEMBERS: i32 = 2;
const NESTED: i32 = 3;
const NESTED_ENUMS: i32 = 4;

/// The whole page.
pub(crate) fn markdown(descriptors: &FileDescriptorSet) -> String {
    let mut page = HEAD.to_owned();
    let ours =
        descriptors.file.iter().filter(|file| file.package() == "phalanx.v1" && file.name() != INTERNAL);
    let ours: Vec<(&FileDescriptorProto, Comments<'_>)> =
        ours.map(|file| (file, Comments::of(file))).collect();
    for (file, comments) in &ours {
        services(file, comments, &mut page);
    }
    page.push_str("\n## Messages\n");
    let mut sections = Vec::new();
    for (file, comments) in &ours {
        for (at, message) in (0..).zip(&file.message_type) {
            sections.push((message.name().to_owned(), self::message(message, &[MESSAGES, at], comments)));
        }
    }
    sections.sort();
    sections.into_iter().for_each(|(_, section)| page.push_str(&section));
    page
}

/// The comments of a file, by their places.
struct Comments<'a>(HashMap<&'a [i32], &'a str>);

impl<'a> Comments<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let places = file.source_code_info.iter().flat_map(|info| &info.location);
        Comments(places.map(|place| (place.path.as_slice(), place.leading_comments())).collect())
    }

    /// A comment as one line.
    fn at(&self, path: &[i32]) -> String {
        let text = self.0.get(path).copied().unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn services(file: &FileDescriptorProto, comments: &Comments<'_>, page: &mut String) {
    for (at, service) in (0..).zip(&file.service) {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| method | asks | answers | |\n|---|---|---|---|\n",
            service.name(),
            comments.at(&[SERVICES, at])
        );
        for (method_at, method) in (0..).zip(&service.method) {
            let stream = if method.server_streaming() { "stream of " } else { "" };
            let (asks, answers) = (linked(method.input_type()), linked(method.output_type()));
            let comment = comments.at(&[SERVICES, at, MEMBERS, method_at]);
            let _ = writeln!(page, "| `{}` | {asks} | {stream}{answers} | {comment} |", method.name());
        }
    }
}

fn message(message: &DescriptorProto, path: &[i32], comments: &Comments<'_>) -> String {
    let mut section = format!("\n### {}\n\n{}\n", message.name(), comments.at(path));
    if !message.field.is_empty() {
        section.push_str("\n| field | type | |\n|---|---|---|\n");
    }
    for (at, field) in (0..).zip(&message.field) {
        let comment = comments.at(&[path, &[MEMBERS, at]].concat());
        let _ = writeln!(section, "| `{}` | {} | {comment} |", field.name(), type_of(field, message));
    }
    for (at, one) in (0..).zip(&message.enum_type) {
        section.push_str(&values(one, &[path, &[NESTED_ENUMS, at]].concat(), comments));
    }
    for (at, one) in (0..).zip(&message.nested_type) {
        if !is_map(one) {
            section.push_str(&self::message(one, &[path, &[NESTED, at]].concat(), comments));
        }
    }
    section
}

fn values(one: &EnumDescriptorProto, path: &[i32], comments: &Comments<'_>) -> String {
    let mut section = format!("\n`{}`: {}\n\n| value | |\n|---|---|\n", one.name(), comments.at(path));
    for (at, value) in (0..).zip(&one.value).filter(|(_, value)| value.number() != 0) {
        let comment = comments.at(&[path, &[MEMBERS, at]].concat());
        let _ = writeln!(section, "| `{}` | {comment} |", value.name());
    }
    section
}

fn is_map(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn type_of(field: &FieldDescriptorProto, within: &DescriptorProto) -> String {
    let entry = field.type_name().rsplit('.').next().unwrap_or_default();
    let map = within.nested_type.iter().find(|nested| is_map(nested) && nested.name() == entry);
    if let Some([key, value]) = map.map(|map| map.field.as_slice()) {
        return format!("map of {} by {}", simple(value), simple(key));
    }
    let kind = simple(field);
    match (field.label() == Label::Repeated, field.proto3_optional()) {
        (true, _) => format!("list of {kind}"),
        (false, true) => format!("{kind}, or absent"),
        (false, false) => kind,
    }
}

fn simple(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => linked(field.type_name()),
        kind => format!("`{}`", kind.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
    }
}

/// A type of ours with a link to its section; a nested one leads to the message it is in.
fn linked(name: &str) -> String {
    let Some(ours) = name.strip_prefix(PACKAGE) else {
        return format!("`{}`", name.trim_start_matches('.'));
    };
    let section = ours.split('.').next().unwrap_or(ours).to_lowercase();
    format!("[{ours}](#{section})")
}
