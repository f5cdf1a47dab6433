//! Causal order over small keys: a tree of what stands under what, and causes before what
//! they caused.
//!
//! A cause that lies elsewhere in the tree is lifted: of the two branches that part below
//! their last common step, the one with the cause comes first. Clocks decide only between
//! branches that nothing else decides. Evidence that contradicts itself (a loop of parents,
//! or of causes) is cut at its earliest step and marked. Depth costs no stack.

use std::collections::{HashMap, HashSet};

/// No step.
pub(super) const NONE: u32 = u32::MAX;

/// What clocks and loops contradict about a step.
pub(super) mod flag {
    /// It began before what it stands under.
    pub(crate) const BEFORE_PARENT: u8 = 1;
    /// It was done before its authority was given.
    pub(crate) const BEFORE_GRANT: u8 = 2;
    /// It began before what it links to.
    pub(crate) const BEFORE_LINK: u8 = 4;
    /// Its parents are a loop, cut here.
    pub(crate) const LOOP: u8 = 8;
    /// Causes are a loop, cut here.
    pub(crate) const CAUSES_LOOP: u8 = 16;
    /// A call that was allowed and never seen.
    pub(crate) const NO_CALL: u8 = 32;
    /// It is the last under its parent.
    pub(crate) const LAST: u8 = 64;
    /// A further record of a span that is there already.
    pub(crate) const AGAIN: u8 = 128;
}

/// What sorts siblings: time, what comes first at the same time, seq.
pub(super) type SortKey = (i64, u8, u64);

/// The steps to be ordered.
#[derive(Default)]
pub(super) struct Tree {
    /// What each step stands under, or [`NONE`].
    pub(super) parents: Vec<u32>,
    /// Marks of each step.
    pub(super) flags: Vec<u8>,
    depths: Vec<u32>,
    /// An ancestor far above, so that climbing takes a logarithmic number of steps.
    jumps: Vec<u32>,
}

impl Tree {
    /// Over parents, which may be loops.
    pub(super) fn new(parents: Vec<u32>, flags: Vec<u8>) -> Self {
        let count = parents.len();
        let mut tree = Self { parents, flags, depths: vec![NONE; count], jumps: vec![NONE; count] };
        let mut path: Vec<u32> = Vec::new();
        for start in 0..count as u32 {
            let mut at = start;
            // A depth of 0 marks what is on the path until it is known.
            while at != NONE && tree.depths[at as usize] == NONE {
                tree.depths[at as usize] = 0;
                path.push(at);
                at = tree.parents[at as usize];
            }
            // The walk came back to its own path: what lies between is a loop.
            if let Some(first) = path.iter().position(|i| *i == at) {
                let (turn, cut) = path[first..].iter().copied().enumerate().min_by_key(|(_, i)| *i).unwrap_or((0, at));
                tree.parents[cut as usize] = NONE;
                tree.flags[cut as usize] |= flag::LOOP;
                // What is on the path is settled from the cut on.
                path[first..].rotate_left(turn + 1);
            }
            for i in path.drain(..).rev() {
                tree.settle(i);
            }
        }
        tree
    }

    fn settle(&mut self, i: u32) {
        let parent = self.parents[i as usize];
        if parent == NONE {
            (self.depths[i as usize], self.jumps[i as usize]) = (0, NONE);
            return;
        }
        self.depths[i as usize] = self.depths[parent as usize] + 1;
        let jump = self.jumps[parent as usize];
        let far = (jump != NONE).then(|| self.jumps[jump as usize]).filter(|far| *far != NONE);
        let even = far.is_some_and(|far| {
            let depth = |i: u32| self.depths[i as usize];
            depth(parent) - depth(jump) == depth(jump) - depth(far)
        });
        self.jumps[i as usize] = if even { far.unwrap_or(NONE) } else { parent };
    }

    pub(super) fn depth(&self, i: u32) -> u32 {
        self.depths[i as usize]
    }

    fn climb(&self, mut i: u32, depth: u32) -> u32 {
        while self.depths[i as usize] > depth {
            let jump = self.jumps[i as usize];
            i = if jump != NONE && self.depths[jump as usize] >= depth { jump } else { self.parents[i as usize] };
        }
        i
    }

    /// The two branches that part above two steps; `None` if one stands under the other.
    fn branches(&self, a: u32, b: u32) -> Option<(u32, u32)> {
        let depth = self.depth(a).min(self.depth(b));
        let (mut a, mut b) = (self.climb(a, depth), self.climb(b, depth));
        if a == b {
            return None;
        }
        while self.parents[a as usize] != self.parents[b as usize] {
            // Steps of one depth have jumps of one length.
            let (x, y) = (self.jumps[a as usize], self.jumps[b as usize]);
            (a, b) = if x != y { (x, y) } else { (self.parents[a as usize], self.parents[b as usize]) };
        }
        Some((a, b))
    }

    /// All steps, each after what it stands under and after its causes as far as they do not
    /// contradict each other. `causes` are pairs of cause and effect.
    pub(super) fn order(&mut self, causes: impl Iterator<Item = (u32, u32)>, key: impl Fn(u32) -> SortKey) -> Vec<u32> {
        let mut pairs: HashSet<(u32, u32)> = HashSet::new();
        pairs.extend(causes.filter_map(|(cause, effect)| self.branches(cause, effect)));
        let mut before: HashMap<u32, Vec<u32>> = HashMap::new();
        for (cause, effect) in pairs {
            before.entry(effect).or_default().push(cause);
        }
        before.values_mut().for_each(|causes| causes.sort_unstable_by_key(|i| key(*i)));
        let (starts, mut children) = self.children();
        let count = self.parents.len();
        for parent in 0..=count {
            let some = &mut children[starts[parent] as usize..starts[parent + 1] as usize];
            some.sort_unstable_by_key(|i| key(*i));
            if some.iter().any(|i| before.contains_key(i)) {
                self.causes_first(some, &before);
            }
            if let Some(last) = some.last() {
                self.flags[*last as usize] |= flag::LAST;
            }
        }
        let of = |parent: usize| children[starts[parent] as usize..starts[parent + 1] as usize].iter().rev();
        let mut order = Vec::with_capacity(count);
        let mut stack: Vec<u32> = of(count).copied().collect();
        while let Some(i) = stack.pop() {
            order.push(i);
            stack.extend(of(i as usize));
        }
        order
    }

    /// What stands under each step, one list after another; under nothing, in the last.
    fn children(&self) -> (Vec<u32>, Vec<u32>) {
        let count = self.parents.len();
        let place = |parent: u32| if parent == NONE { count } else { parent as usize };
        let mut starts = vec![0u32; count + 2];
        for parent in &self.parents {
            starts[place(*parent) + 1] += 1;
        }
        for i in 0..=count {
            starts[i + 1] += starts[i];
        }
        let (mut next, mut children) = (starts.clone(), vec![0u32; count]);
        for (i, parent) in self.parents.iter().enumerate() {
            let at = &mut next[place(*parent)];
            children[*at as usize] = i as u32;
            *at += 1;
        }
        (starts, children)
    }

    /// Takes each sibling in turn, and its causes before it.
    fn causes_first(&mut self, siblings: &mut [u32], before: &HashMap<u32, Vec<u32>>) {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            Begun,
            Done,
        }
        let mut states: HashMap<u32, State> = HashMap::new();
        let mut out = Vec::with_capacity(siblings.len());
        let mut stack: Vec<(u32, usize)> = Vec::new();
        for i in siblings.iter() {
            if !states.contains_key(i) {
                states.insert(*i, State::Begun);
                stack.push((*i, 0));
            }
            while let Some((at, next)) = stack.pop() {
                let Some(cause) = before.get(&at).and_then(|causes| causes.get(next)) else {
                    states.insert(at, State::Done);
                    out.push(at);
                    continue;
                };
                stack.push((at, next + 1));
                match states.get(cause) {
                    None => {
                        states.insert(*cause, State::Begun);
                        stack.push((*cause, 0));
                    }
                    Some(State::Begun) => self.flags[at as usize] |= flag::CAUSES_LOOP,
                    Some(State::Done) => {}
                }
            }
        }
        siblings.copy_from_slice(&out);
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
