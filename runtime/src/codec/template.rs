//! Chat templates, in a sandbox: no loader, no host functions but two, bounded instructions (fuel), bounded recursion and
//! a bounded output. Templates come with the model; none is taken from a client.
//!
//! Fuel counts instructions, not bytes, so what makes many bytes of a number is bounded on its own (`indent`) or taken out
//! (`format`, whose widths have no bound). What is left is a string that a template doubles in a loop: templates are the
//! operator's choice as weights are.

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
};

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, StringInput},
};
use weir_models::ChatTemplate;

use crate::submission::ChatMessage;

/// Instructions a rendering may take. Templates take some 50 a message.
const FUEL: u64 = 2_000_000;
/// Nested blocks and macros.
const RECURSION_MAX: usize = 100;
/// Output beyond twice the content: what markers, tool lists and default system prompts may add.
const OUTPUT_SLACK_BYTES: usize = 64 << 10;
/// Columns that `indent` may add.
const INDENT_MAX: usize = 64;
const NAME: &str = "chat";

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// Why a conversation could not be rendered.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// The template does not compile.
    #[error("the model's chat template is broken: {0}")]
    Broken(String),
    /// The template refused the conversation (`raise_exception`).
    #[error("{0}")]
    Refused(String),
    /// A bound was hit.
    #[error("the conversation is too large for the model's chat template: {0}")]
    TooLarge(String),
}

impl Template {
    pub(crate) fn new(template: &ChatTemplate) -> Result<Self, TemplateError> {
        let broken = |e: Error| TemplateError::Broken(e.to_string());
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
        });
        environment.add_function("strftime_now", |format: &str| today(format));
        environment.add_filter("tojson", to_json);
        environment.add_filter("indent", indent);
        environment.remove_filter("format");
        environment.add_template_owned(NAME, template.source.clone()).map_err(broken)?;
        Ok(Template { environment, bos_token: template.bos_token.clone(), eos_token: template.eos_token.clone() })
    }

    /// Renders a conversation, ending with the generation prompt.
    pub(crate) fn render(&self, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        let content: usize = messages.iter().map(|m| m.bytes() + m.role.len()).sum();
        let mut output = BoundedOutput { bytes: Vec::new(), left: 2 * content + OUTPUT_SLACK_BYTES };
        let template = self.environment.get_template(NAME).map_err(|e| TemplateError::Broken(e.to_string()))?;
        let context = minijinja::context! {
            messages => Value::from(Serde(messages)),
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
            add_generation_prompt => true,
        };
        // minijinja 3.0.5 panics where a template turns an empty list around (`messages[1:][::-1]`). Nothing of a rendering
        // outlives it but what it wrote, which is dropped then.
        let rendered = catch_unwind(AssertUnwindSafe(|| template.render_captured_to(context, &mut output).map(drop)));
        let rendered = rendered
            .map_err(|_| TemplateError::Refused("the model's chat template failed: the engine gave up on it".into()))?;
        rendered.map_err(|error| {
            if output_full(&error) || error.kind() == ErrorKind::OutOfFuel {
                return TemplateError::TooLarge(error.kind().to_string());
            }
            match error.detail().and_then(|d| d.strip_prefix(REFUSED)) {
                Some(message) => TemplateError::Refused(message.to_owned()),
                None => TemplateError::Refused(format!("the model's chat template failed: {error}")),
            }
        })?;
        String::from_utf8(output.bytes).map_err(|e| TemplateError::Broken(e.to_string()))
    }
}

/// Marks the template's own refusals among minijinja's errors.
const REFUSED: &str = "refused: ";

/// Fuel counts instructions, not bytes: a repeated string could print a hundred megabytes for almost none.
struct BoundedOutput {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn output_full(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if inner.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::StorageFull) {
            return true;
        }
        source = inner.source();
    }
    false
}

/// Python's methods of strings, lists and maps, but `format`.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "format" {
        return Err(Error::new(ErrorKind::UnknownMethod, "`format` is not supported"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `indent` with a bound on its width.
fn indent(
    value: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let wanted = match width {
        Some(width) => width,
        None => options.get::<Option<usize>>("width")?.unwrap_or(0),
    };
    if wanted > INDENT_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("indent: at most {INDENT_MAX} columns")));
    }
    filters::indent(value, width, first, blank, options)
}

/// `tojson` as Python prints it: `", "` and `": "` between items, nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for compatibility; the output is never ASCII-escaped, which is what templates ask for.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value: serde_json::Value = serde::Deserialize::deserialize(value)?;
    let mut bytes = Vec::new();
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    match indent {
        Some(width) => {
            let pad = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&pad);
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
            serde::Serialize::serialize(&value, &mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter);
            serde::Serialize::serialize(&value, &mut serializer).map_err(failed)?;
        }
    }
    String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `strftime_now` for the date directives that published templates use; UTC.
fn today(format: &str) -> Result<String, Error> {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?
        .as_secs();
    strftime(format, seconds)
}

fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil_date(unix_seconds / 86_400);
    let month_name = MONTHS[month as usize - 1];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(month_name),
            Some('b') => text.push_str(&month_name[..3]),
            Some('H') => text.push_str(&format!("{:02}", unix_seconds / 3600 % 24)),
            Some('M') => text.push_str(&format!("{:02}", unix_seconds / 60 % 60)),
            Some('S') => text.push_str(&format!("{:02}", unix_seconds % 60)),
            Some('%') => text.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: %{directive} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(text)
}

/// Year, month and day of a count of days since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<Template, TemplateError> {
        Template::new(&ChatTemplate { source: source.into(), bos_token: "<s>".into(), eos_token: "</s>".into() })
    }

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into(), name: None }
    }

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        template(source)?.render(messages)
    }

    #[test]
    fn chatml_renders_with_its_generation_prompt() {
        let source = crate::codec::CHATML;
        let got = render(source, &[message("user", "Hi\n")]).expect("renders");
        assert_eq!(got, "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn python_methods_and_json_work() {
        let source = "{{ messages[0].content.strip().split(',')[1] }}|{{ {'a': [1, '<']} | tojson }}|{{ bos_token }}";
        assert_eq!(render(source, &[message("user", " x,y ")]).expect("renders"), "y|{\"a\": [1, \"<\"]}|<s>");
    }

    #[test]
    fn refusals_carry_the_templates_words() {
        let got = render("{{ raise_exception('roles must alternate') }}", &[]);
        assert_eq!(got, Err(TemplateError::Refused("roles must alternate".into())));
    }

    #[test]
    fn endless_and_huge_templates_are_stopped() {
        for source in [
            "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}",
            "{{ 'x' * 100000000 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ] {
            assert!(render(source, &[]).is_err(), "{source} was rendered");
        }
    }

    #[test]
    fn numbers_in_templates_are_no_sizes() {
        for source in [
            "{{ 'a\nb' | indent(1000000000) }}",
            "{{ 'a\nb' | indent(width=65) }}",
            "{{ '%99999999999d' | format(1) }}",
            "{{ '{:>99999999999}'.format(1) }}",
            "{{ '{}'.format(1) }}",
        ] {
            assert!(render(source, &[]).is_err(), "{source} was rendered");
        }
        assert_eq!(
            render("{{ 'a\nb' | indent }}|{{ 'a\nb' | indent(width=2) }}", &[]).expect("known"),
            "a\n    b|a\n  b"
        );
    }

    #[test]
    fn a_panic_of_the_engine_is_a_refusal() {
        let source = "{% for m in messages[1:][::-1] %}{{ m.content }}{% endfor %}";
        assert!(render(source, &[message("user", "x")]).is_err());
        assert_eq!(render(source, &[message("user", "x"), message("user", "y")]).expect("renders"), "y");
    }

    #[test]
    fn nothing_can_be_included() {
        for source in ["{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{% extends 'base' %}"] {
            assert!(render(source, &[]).is_err(), "{source} was rendered");
        }
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(strftime("%d %B %Y", 0).expect("known"), "01 January 1970");
        assert_eq!(strftime("%d %b %Y %H:%M:%S", 1_709_251_199).expect("known"), "29 Feb 2024 23:59:59");
        assert!(strftime("%Q", 0).is_err());
    }
}
