//! A Rust file as the checks see it: code without what comments and literals say, and without its tests.

/// What marks an item as compiled for tests only.
const TEST_ITEM: &str = "#[cfg(test)]";

/// A Rust file's code, line for line that of the file. Comments and the insides of string and character literals are
/// blanks; so is every item under `#[cfg(test)]`.
pub(crate) struct Source {
    code: String,
    /// The 1-based line on which the first test item begins; one past the last line where there is none.
    pub(crate) tests_begin: usize,
    /// Modules under `#[cfg(test)]` that have a file of their own, by name.
    pub(crate) test_modules: Vec<String>,
}

/// A function and how long it is.
pub(crate) struct Function {
    pub(crate) name: String,
    /// 1-based.
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let mut code = blank_literals(text);
        let mut tests_begin = text.lines().count() + 1;
        let mut test_modules = Vec::new();
        while let Some(start) = code.find(TEST_ITEM) {
            tests_begin = tests_begin.min(line_of(&code, start));
            let end = end_of_item(&code, start + TEST_ITEM.len());
            let words: Vec<&str> =
                code[start + TEST_ITEM.len()..end].trim_end_matches(';').split_whitespace().collect();
            if let ["mod", name] | [.., "mod", name] = words[..] {
                test_modules.push(name.to_owned());
            }
            blank(&mut code, start, end);
        }
        Source { code, tests_begin, test_modules }
    }

    /// The lines with their 1-based numbers.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Every function with a body, nested ones too.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (start, _) in self.code.match_indices("fn ") {
            let is_word = !self.code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let name: String =
                self.code[start + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // Pointers such as `fn (i32)` have no name.
            if !is_word || name.is_empty() {
                continue;
            }
            let end = end_of_item(&self.code, start);
            if self.code[start..end].ends_with('}') {
                let line = line_of(&self.code, start);
                functions.push(Function { name, line, lines: line_of(&self.code, end - 1) - line + 1 });
            }
        }
        functions
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// One past the end of the item that begins at `start`: its closing brace, or its semicolon outside any bracket.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && byte == b'}' {
                    return offset + 1;
                }
            }
            b';' if depth == 0 => return offset + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(code: &mut String, start: usize, end: usize) {
    let blanks: String = code[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
    code.replace_range(start..end, &blanks);
}

/// `text` with comments and the insides of literals blanked; line breaks stay.
fn blank_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            code.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// One past the end of the comment or literal that begins at `at`; `at` where none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next == Some('/') => find(chars, at, |c| c[0] == '\n'),
        '/' if next == Some('*') => block_comment_end(chars, at),
        '"' => quoted_end(chars, at + 1, '"'),
        // A character, not a lifetime: `'a'` or `'\n'`.
        '\'' if next == Some('\\') || chars.get(at + 2) == Some(&'\'') => quoted_end(chars, at + 1, '\''),
        'r' if !in_word || (chars[at - 1] == 'b' || chars[at - 1] == 'c') => raw_end(chars, at),
        _ => at,
    }
}

fn find(chars: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|&at| found(&chars[at..])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn quoted_end(chars: &[char], inside: usize, quote: char) -> usize {
    let mut at = inside;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn raw_end(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let inside = start + 1 + hashes + 1;
    if chars.get(inside - 1) != Some(&'"') {
        return start;
    }
    let closes =
        |rest: &[char]| rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|c| *c == '#');
    (find(chars, inside, closes) + 1 + hashes).min(chars.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r##"//! A tokio file.
fn short<'a>(x: &'a str) -> char { let _ = "tokio \" {"; /* tokio /* { */ */ '{' }

trait T { fn without_body(&self) -> [u8; 2]; }
const RAW: &str = r#"tokio " {"#; // {
fn long(f: fn (u8)) {
    f(1);
}
#[cfg(test)]
mod tests {
    use tokio::x;
    fn inner() { x(); }
}
fn after() { real_tokio(); }
"##;

    #[test]
    fn only_code_outside_tests_is_seen() {
        let source = Source::new(FILE);
        let lines: Vec<usize> =
            source.lines().filter(|(_, line)| line.contains("tokio")).map(|(number, _)| number).collect();
        assert_eq!(lines, [14]);
        assert_eq!(source.tests_begin, 9);
    }

    #[test]
    fn modules_of_tests_with_a_file_of_their_own_are_named() {
        let source =
            Source::new("mod a;\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod inline { mod b; }\nfn f() {}\n");
        assert_eq!(source.test_modules, ["tests"]);
    }

    #[test]
    fn functions_are_measured() {
        let found: Vec<(String, usize, usize)> =
            Source::new(FILE).functions().into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        let wanted = [("short", 2, 1), ("long", 6, 3), ("after", 14, 1)];
        assert_eq!(found, wanted.map(|(name, line, lines)| (name.to_owned(), line, lines)));
    }
}
