//! A run of whole lines of the file and where each comes from: what is cached, put together and blamed.

use std::sync::Arc;

use crate::settings::{Line, Place};

use super::words;

/// Something the reader of a configuration should know: what was left out and why, or what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The service it concerns.
    pub service: Option<Arc<str>>,
    /// The line of the configuration it concerns.
    pub place: Option<Place>,
    /// What it is, printable, with the remedy.
    pub text: String,
}

/// Lines of the file, each ending in a line feed.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) service: Option<Arc<str>>,
    pub(super) text: String,
    pub(super) lines: usize,
    /// From which line of the piece (from 0) on a place holds; ascending.
    runs: Vec<(usize, Option<Place>)>,
}

impl Piece {
    pub(super) fn of(service: Option<&Arc<str>>) -> Self {
        Self {
            service: service.cloned(),
            ..Self::default()
        }
    }

    /// Adds a line that stands at the margin.
    pub(super) fn head(&mut self, text: &str, place: Option<&Place>) {
        self.origin(place);
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// Adds a line of a section.
    pub(super) fn line(&mut self, text: &str, place: Option<&Place>) {
        self.origin(place);
        self.text.push('\t');
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// Adds the lines of a section as they were written, less those that would not stay in it.
    pub(super) fn written(&mut self, section: &str, lines: &[Line], findings: &mut Vec<Finding>) {
        for line in lines {
            if let Some(why) = words::refusal(&line.text) {
                let text = crate::model::shown(&line.text);
                findings.push(Finding {
                    service: self.service.clone(),
                    place: line.place.clone(),
                    text: format!("left out of `{section}`: `{text}` {why}"),
                });
                continue;
            }
            self.line(&line.text, line.place.as_ref());
        }
    }

    /// Adds `count` whole lines of one origin.
    pub(super) fn block(&mut self, text: &str, count: usize, place: Option<&Place>) {
        if count > 0 {
            self.origin(place);
            self.lines += count - 1;
            self.text.push_str(text);
        }
    }

    /// Where a line of the piece (from 0) comes from.
    pub(super) fn place(&self, line: usize) -> Option<&Place> {
        let after = self.runs.partition_point(|(from, _)| *from <= line);
        self.runs.get(after.checked_sub(1)?)?.1.as_ref()
    }

    /// Says where the next line comes from, and counts it. The caller writes it.
    fn origin(&mut self, place: Option<&Place>) {
        let same = match self.runs.last() {
            Some((_, last)) => last.as_ref() == place,
            None => place.is_none(),
        };
        if !same {
            self.runs.push((self.lines, place.cloned()));
        }
        self.lines += 1;
    }
}
