//! Tables that fit a terminal: columns where they fit, the last of them folded if need be, else each row as
//! lines of its own.

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, presets};
use schema::text::NOTHING;

/// What the last column has at least if it is folded: with less, each word would be a line.
const LAST: usize = 24;
/// The blanks between columns.
const GAP: usize = 2;

/// A table, row by row.
pub(super) struct Table {
    head: &'static [&'static str],
    rows: Vec<Vec<Entry>>,
}

/// What is in a cell: one line or several, perhaps in a colour.
pub(super) struct Entry {
    text: String,
    colour: Option<Color>,
}

impl Entry {
    /// A text; an empty one is shown as `-`.
    pub(super) fn of(text: impl ToString) -> Self {
        let text = text.to_string();
        Self { text: if text.is_empty() { NOTHING.into() } else { text }, colour: None }
    }

    /// A text in a colour, which the console removes where it would not be shown.
    pub(super) fn coloured(text: &str, colour: Color) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }
}

impl Table {
    /// A table without rows.
    pub(super) fn new(head: &'static [&'static str]) -> Self {
        Self { head, rows: Vec::new() }
    }

    /// Adds a row, with an entry for each column.
    pub(super) fn row(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.rows.push(entries.into_iter().collect());
    }

    /// The table in lines of at most so many characters, as far as its words allow; absent: of any length. It
    /// ends with the end of a line.
    pub(super) fn text(&self, columns: Option<usize>) -> String {
        let widths: Vec<usize> = (0..self.head.len()).map(|at| self.width(at)).collect();
        let (last, others) =
            widths.split_last().map_or((0, 0), |(last, others)| (*last, others.iter().sum()));
        let before = others + GAP * widths.len().saturating_sub(1);
        match columns {
            Some(columns) if before + LAST.min(last) > columns => self.list(),
            Some(columns) if before + last > columns => self.columns(Some(columns)),
            Some(_) | None => self.columns(None),
        }
    }

    fn width(&self, at: usize) -> usize {
        let lines = self.rows.iter().flat_map(|row| row[at].text.lines());
        lines.map(|line| line.chars().count()).chain([self.head[at].len()]).max().unwrap_or_default()
    }

    /// As columns; the last is folded if a width is given.
    fn columns(&self, width: Option<usize>) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.enforce_styling().set_header(self.head.iter().copied());
        for row in &self.rows {
            let cell = |Entry { text, colour }: &Entry| match colour {
                Some(colour) => Cell::new(text).fg(*colour),
                None => Cell::new(text),
            };
            table.add_row(row.iter().map(cell));
        }
        if let Some(width) = width {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
        }
        let last = self.head.len().saturating_sub(1);
        for (at, column) in table.column_iter_mut().enumerate() {
            let gap = if at < last { GAP } else { 0 };
            column.set_padding((0, u16::try_from(gap).unwrap_or_default()));
            if at < last {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    /// Each row as lines, one for each column that has something.
    fn list(&self) -> String {
        let width = self.head.iter().map(|head| head.len()).max().unwrap_or_default();
        let line = |(head, Entry { text, .. }): (&&str, &Entry)| {
            let further = format!("\n{:width$}  ", "");
            format!("{head:width$}  {}\n", text.lines().collect::<Vec<_>>().join(&further))
        };
        let row = |row: &Vec<Entry>| {
            self.head.iter().zip(row).filter(|(_, entry)| entry.text != NOTHING).map(line).collect::<String>()
        };
        self.rows.iter().map(row).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rows: &[[&str; 3]], columns: Option<usize>) -> String {
        let mut table = Table::new(&["NODE", "STATE", "MESSAGE"]);
        rows.iter().for_each(|row| table.row(row.iter().map(Entry::of)));
        table.text(columns)
    }

    #[test]
    fn a_table_that_fits_has_columns() {
        let rows = [["db", "online", ""], ["web", "silent", "two words"]];
        let table = "NODE  STATE   MESSAGE\ndb    online  -\nweb   silent  two words\n";
        assert_eq!(shown(&rows, None), table);
        assert_eq!(shown(&rows, Some(60)), table);
    }

    #[test]
    fn its_last_column_is_folded_at_words() {
        let message = "all of these words do not fit into the sixty columns that there are";
        let table = shown(&[["db", "online", message]], Some(60));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 60) && lines.len() == 3, "{table}");
        assert!(lines[2].starts_with("              ") && table.contains("db    online  all of"), "{table}");
    }

    #[test]
    fn where_columns_do_not_fit_each_row_has_lines_of_its_own() {
        let name = "n".repeat(63);
        let table = shown(&[[&name, "online", "one\ntwo"], ["b", "silent", ""]], Some(60));
        let lines = format!(
            "NODE     {name}\nSTATE    online\nMESSAGE  one\n         two\n\nNODE     b\nSTATE    silent\n"
        );
        assert_eq!(table, lines);
        let wide = shown(&[[&name, "online", ""], ["b", "silent", ""]], None);
        assert_eq!(
            wide.lines().map(|line| line.find("  ")).max(),
            Some(Some(63)),
            "the columns hold: {wide}"
        );
    }
}
