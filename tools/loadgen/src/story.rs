//! What the agents do: a cycle of five conversations, with their grants.
//!
//! A cycle is 64 spans in five traces, and 32 log records about them. A slot is a
//! span's place in it. The slots of a trace are in the order in which its spans
//! end, children before parents, as exporters send them. Everything here is fixed;
//! ids, times and texts come in later (records.rs, traffic.rs).

/// Spans and log records of a cycle.
pub const SPANS: usize = 64;
pub const LOGS: usize = 32;

/// Traces of a cycle, each as a tree: (agent) with c a model call, r a retrieval,
/// t a tool call, and an agent inside another one that it passes a grant to.
const TREES: [&str; 5] =
    ["(ct)", "(crctc)", "(c(crtc)ttcrc)", "(c(ctct)c(crtc(ct))tc)", "(cr(ctctc)(crtt(ctc))tc(cttc))"];

/// Traces of a cycle.
pub const TRACES: u64 = TREES.len() as u64;

/// Virtual time from one cycle to the next, in ns: a thousand spans a second.
pub const CYCLE_NS: u64 = 64_000_000;

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Agent,
    Chat,
    Retrieval,
    Tool,
}

/// A span of the cycle.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub trace: u8,
    pub slot: u8,
    pub parent: Option<u8>,
    pub role: Role,
    /// Which agent of its trace acts, 0 the outermost; its grant has the same number.
    pub agent: u8,
    /// When it starts and ends, in ns after the cycle's time.
    pub start: u64,
    pub end: u64,
}

/// A log record of the cycle.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    pub event: Event,
    pub trace: u8,
    /// The span that it belongs to.
    pub slot: u8,
    /// The agent that it is about, and the agent that this one has its grant from.
    pub agent: u8,
    pub from: u8,
    /// In ns after the cycle's time.
    pub time: u64,
}

/// What a log record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Request,
    Policy,
    Approval,
    Issued,
    Derived,
    Denied,
    Decision,
    Revoked,
    Output,
}

/// A cycle.
pub struct Cycle {
    pub steps: Vec<Step>,
    pub notes: Vec<Note>,
}

struct Tree<'a> {
    text: std::slice::Iter<'a, u8>,
    trace: u8,
    agents: u8,
    clock: u64,
    steps: &'a mut Vec<Step>,
    /// Agents of this trace: number, the one it has its grant from, start.
    lineage: Vec<(u8, u8, u64)>,
}

impl Tree<'_> {
    /// Reads the inside of an agent, up to its closing parenthesis.
    fn agent(&mut self, from: u8) -> u8 {
        let number = self.agents;
        self.agents += 1;
        let start = self.clock;
        self.clock += 2_000_000;
        self.lineage.push((number, from, start));
        let mut children = Vec::new();
        while let Some(letter) = self.text.next() {
            match letter {
                b'(' => children.push(self.agent(number)),
                b')' => break,
                b'c' => children.push(self.leaf(Role::Chat, number, 800_000_000)),
                b'r' => children.push(self.leaf(Role::Retrieval, number, 45_000_000)),
                _ => children.push(self.leaf(Role::Tool, number, 130_000_000)),
            }
        }
        let end = self.clock + 1_000_000;
        self.clock = end;
        let slot = self.push(Role::Agent, number, start, end);
        for child in children {
            self.steps[usize::from(child)].parent = Some(slot);
        }
        slot
    }

    fn leaf(&mut self, role: Role, agent: u8, lasts: u64) -> u8 {
        let start = self.clock;
        self.clock += lasts + 500_000;
        self.push(role, agent, start, start + lasts)
    }

    fn push(&mut self, role: Role, agent: u8, start: u64, end: u64) -> u8 {
        let slot = self.steps.len() as u8;
        self.steps.push(Step { trace: self.trace, slot, parent: None, role, agent, start, end });
        slot
    }
}

/// The cycle, made from the trees.
pub fn cycle() -> Cycle {
    let (mut steps, mut notes) = (Vec::new(), Vec::new());
    for (trace, text) in TREES.iter().enumerate() {
        let first = steps.len();
        let mut tree = Tree {
            text: text.as_bytes()[1..].iter(),
            trace: trace as u8,
            agents: 0,
            clock: trace as u64 * 11_000_000,
            steps: &mut steps,
            lineage: Vec::new(),
        };
        let root = tree.agent(0);
        let lineage = tree.lineage;
        tell(&mut notes, &steps[first..], root, &lineage);
    }
    assert!(steps.len() == SPANS && notes.len() == LOGS, "a cycle is {} spans, {} logs", steps.len(), notes.len());
    Cycle { steps, notes }
}

/// The log records about one trace.
fn tell(notes: &mut Vec<Note>, steps: &[Step], root: u8, lineage: &[(u8, u8, u64)]) {
    let (trace, start) = (steps[0].trace, lineage[0].2);
    let agent_slot = |agent: u8| steps.iter().find(|s| s.role == Role::Agent && s.agent == agent).map(|s| s.slot);
    let mut note = |event, agent: u8, from, time| {
        notes.push(Note { event, trace, slot: agent_slot(agent).unwrap_or(root), agent, from, time });
    };
    note(Event::Request, 0, 0, start + 100_000);
    if trace != 0 {
        note(Event::Policy, 0, 0, start + 300_000);
    }
    if trace == 4 {
        note(Event::Approval, 0, 0, start + 400_000);
    }
    note(Event::Issued, 0, 0, start + 500_000);
    for (agent, from, time) in &lineage[1..] {
        note(Event::Derived, *agent, *from, time + 200_000);
    }
    if trace == 3 {
        note(Event::Denied, 1, 0, start + 900_000_000);
    } else if let Some(tool) = steps.iter().find(|s| s.role == Role::Tool) {
        let time = tool.start - 200_000;
        notes.push(Note { event: Event::Decision, trace, slot: tool.slot, agent: tool.agent, from: tool.agent, time });
    }
    let end = steps.iter().map(|s| s.end).max().unwrap_or(start);
    let mut last = |event, time| notes.push(Note { event, trace, slot: root, agent: 0, from: 0, time });
    match trace {
        1 | 3 => last(Event::Output, end - 500_000),
        4 => {
            last(Event::Output, end - 500_000);
            last(Event::Revoked, end + 5_000_000);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_end_before_their_parents_and_start_after_them() {
        let cycle = cycle();
        for step in &cycle.steps {
            assert!(step.start < step.end);
            match step.parent {
                Some(parent) => {
                    let parent = &cycle.steps[usize::from(parent)];
                    assert_eq!((parent.trace, parent.role), (step.trace, Role::Agent));
                    assert!(step.slot < parent.slot && parent.start < step.start && step.end < parent.end);
                }
                None => assert_eq!((step.role, step.agent), (Role::Agent, 0)),
            }
        }
        assert_eq!(cycle.steps.iter().filter(|s| s.parent.is_none()).count(), TREES.len());
    }

    #[test]
    fn every_agent_has_its_grant_before_it_acts() {
        let cycle = cycle();
        for step in &cycle.steps {
            let event = if step.agent == 0 { Event::Issued } else { Event::Derived };
            let grant = cycle.notes.iter().find(|n| (n.event, n.trace, n.agent) == (event, step.trace, step.agent));
            let grant = grant.expect("there is a grant");
            assert!(step.role == Role::Agent || grant.time < step.start, "{step:?} {grant:?}");
            assert!(step.agent == 0 || grant.from < grant.agent);
        }
        assert!(cycle.notes.iter().any(|n| n.event == Event::Revoked));
        assert!(cycle.notes.iter().any(|n| n.event == Event::Denied));
    }
}
