//! The tree that a person reads: who, under which grant, what was decided, what
//! was done, with which result, when.

use crate::ocsf::rfc3339;
use crate::replay::StepRow;
use crate::rows::Time;

/// Escapes of a terminal, or nothing.
struct Paint(bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Draws all of some steps. Text of the log's senders is stripped of control characters,
/// so that no attribute can command the reader's terminal.
pub fn render(steps: &[StepRow], color: bool) -> String {
    let mut tree = Tree::new(color);
    steps.iter().map(|step| tree.draw(step)).collect()
}

/// Draws steps as they come. It keeps nothing but the branch that it is on.
pub struct Tree {
    paint: Paint,
    /// Of each step above, whether it was the last under its own parent.
    last: Vec<bool>,
    /// The day that the times above are of, since 1970.
    day: Option<i64>,
}

impl Tree {
    /// Nothing drawn yet.
    pub fn new(color: bool) -> Self {
        Self { paint: Paint(color), last: Vec::new(), day: None }
    }

    /// The lines of the next step, below a line with its day where that is another than the last step's.
    pub fn draw(&mut self, step: &StepRow) -> String {
        let depth = step.depth as usize;
        self.last.truncate(depth);
        self.last.resize(depth, true);
        // Only as much of the ancestry is drawn as fits a line.
        let bars = self.last[depth.saturating_sub(DEPTH_DRAWN)..].iter();
        let prefix: String = bars.map(|is_last| if *is_last { "   " } else { "│  " }).collect();
        let (branch, bar) = if step.is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let time = step.event_time.map_or_else(|| " ".repeat(12), clock);
        let mut out = step.event_time.map_or_else(String::new, |time| self.dated(time));
        out.push_str(&format!("{time}  {prefix}{branch}{}\n", line(step, &self.paint)));
        for more in details(step, &self.paint) {
            out.push_str(&format!("{}  {prefix}{bar}     {more}\n", " ".repeat(12)));
        }
        // A marker stands beside steps, and nothing stands under it.
        if step.kind != "missing" {
            self.last.push(step.is_last);
        }
        out
    }

    /// The day of a time, where no line has said it.
    fn dated(&mut self, time: Time) -> String {
        let day = time.0.div_euclid(86_400_000_000_000);
        if self.day.replace(day) == Some(day) {
            return String::new();
        }
        let date = rfc3339(time);
        self.paint.with("2", &format!("{} (UTC)", date.split('T').next().unwrap_or(&date))) + "\n"
    }
}

/// Steps above that are drawn.
const DEPTH_DRAWN: usize = 40;

fn line(step: &StepRow, paint: &Paint) -> String {
    let name = step.agent_name.as_deref().or(step.agent_id.as_deref()).unwrap_or("?");
    let name = clean(name, 60);
    let grant = step.grant_id.as_deref().map_or_else(|| "no grant".into(), |g| format!("grant {}", clean(g, 60)));
    let seq = step.seq.map_or_else(String::new, |seq| paint.with("2", &format!("  #{seq}")));
    let text = match step.kind.as_str() {
        "missing" => return paint.with("33", &format!("?? {}", clean(step.missing.as_deref().unwrap_or(""), 200))),
        "request" => format!("request by {}", clean(step.initiator_id.as_deref().unwrap_or("?"), 80)),
        "agent_invocation" => paint.with("1", &format!("agent {name}")),
        "model_call" => format!("model call by {name}"),
        "tool_call" => {
            let tool = clean(step.tool.as_deref().or(step.action.as_deref()).unwrap_or("?"), 80);
            let failed = if step.status.as_deref() == Some("error") { " FAILED" } else { "" };
            format!("{} by {name}, {grant}{failed}", paint.with("1", &format!("tool {tool}")))
        }
        "grant_issued" => format!("{grant} issued to {name}"),
        "grant_derived" => {
            let parent = clean(step.parent_grant_id.as_deref().unwrap_or("?"), 60);
            format!("{grant} derived from {parent} for {name}")
        }
        "grant_denied" => paint.with("31", &format!("DENIED to {name}: {}", what(step))),
        "grant_revoked" => paint.with("31", &format!("{grant} REVOKED")),
        "policy_evaluation" | "executor_decision" | "approval" => {
            let decision = clean(step.decision.as_deref().unwrap_or("?"), 30);
            let text = format!("{} by {}: {decision} {}", step.kind.replace('_', " "), service(step), what(step));
            if matches!(decision.as_str(), "deny" | "rejected") { paint.with("31", &text) } else { text }
        }
        other => format!("{} {}", other.replace('_', " "), what(step)),
    };
    format!("{}{seq}", text.trim_end())
}

fn service(step: &StepRow) -> String {
    clean(step.service.as_deref().unwrap_or("?"), 60)
}

fn what(step: &StepRow) -> String {
    let parts = [step.action.as_deref().or(step.tool.as_deref()), step.resource.as_deref()];
    parts.into_iter().flatten().map(|p| clean(p, 80)).collect::<Vec<_>>().join(" on ")
}

fn details(step: &StepRow, paint: &Paint) -> Vec<String> {
    let mut out = Vec::new();
    let shown = |label: &str, text: &Option<String>| text.as_deref().map(|t| format!("{label} {}", clean(t, 100)));
    if step.kind == "tool_call" {
        out.extend(shown("args  ", &step.arguments));
        out.extend(shown("result", &step.result));
    }
    if !step.reasons.is_empty() {
        out.push(format!("because {}", clean(&step.reasons.join("; "), 160)));
    }
    out.extend(step.note.as_deref().map(|note| paint.with("1;31", &format!("!! {}", clean(note, 200)))));
    out
}

/// One line of plain text, shortened.
fn clean(text: &str, max: usize) -> String {
    // White space first, so that a line break reads as one; what else commands a terminal is shown as a picture.
    let plain: String = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    let plain = crate::format::plain(&plain);
    let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if plain.chars().count() <= max {
        return plain;
    }
    plain.chars().take(max).chain(['…']).collect()
}

/// The time of day, UTC, with milliseconds.
fn clock(time: Time) -> String {
    let millis = time.0.div_euclid(1_000_000).rem_euclid(86_400_000);
    let (seconds, millis) = (millis / 1000, millis % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_told_at_first_and_where_it_changes() {
        let step = |day: i64| StepRow {
            kind: "model_call".into(),
            agent_name: Some("a".into()),
            event_time: Some(Time(day * 86_400_000_000_000 + 1_000_000)),
            is_last: true,
            ..StepRow::default()
        };
        let unknown = StepRow { event_time: None, ..step(0) };
        let drawn = render(&[step(20_000), step(20_000), unknown, step(20_000), step(20_001), step(-1)], false);
        let days: Vec<&str> = drawn.lines().filter(|line| line.ends_with("(UTC)")).collect();
        assert_eq!(days, ["2024-10-04 (UTC)", "2024-10-05 (UTC)", "1969-12-31 (UTC)"], "{drawn}");
        assert!(drawn.starts_with("2024-10-04 (UTC)\n00:00:00.001  "), "{drawn}");
    }
}
