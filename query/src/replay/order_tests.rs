//! The order against its rules, on random trees with random causes, and on what contradicts itself.

use proptest::prelude::*;

use super::*;

fn ordered(parents: Vec<u32>, causes: &[(u32, u32)], times: &[i64]) -> (Vec<u32>, Tree) {
    let flags = vec![0; parents.len()];
    let mut tree = Tree::new(parents, flags);
    let order = tree.order(causes.iter().copied(), |i| (times[i as usize], 0, u64::from(i)));
    (order, tree)
}

fn places(order: &[u32]) -> Vec<usize> {
    let mut places = vec![usize::MAX; order.len()];
    for (place, i) in order.iter().enumerate() {
        places[*i as usize] = place;
    }
    places
}

fn is_above(tree: &Tree, above: u32, mut i: u32) -> bool {
    while i != NONE {
        if i == above {
            return true;
        }
        i = tree.parents[i as usize];
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn parents_come_first_and_causes_too(
        raw in proptest::collection::vec((any::<u32>(), 0i64..5), 1..40),
        arrows in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..12),
    ) {
        // Parents may lie anywhere: loops included.
        let count = raw.len() as u32;
        let parents: Vec<u32> = raw.iter().map(|(p, _)| if p % 5 == 0 { NONE } else { p % count }).collect();
        let times: Vec<i64> = raw.iter().map(|(_, t)| *t).collect();
        // Causes only from lower to higher numbers, so that they are no loop by themselves.
        let causes: Vec<(u32, u32)> =
            arrows.iter().map(|(a, b)| (a % count, b % count)).filter(|(a, b)| a < b).collect();
        let (order, tree) = ordered(parents, &causes, &times);
        let places = places(&order);
        prop_assert_eq!(order.len(), raw.len());
        prop_assert!(places.iter().all(|p| *p != usize::MAX), "every step once");
        for (i, parent) in tree.parents.iter().enumerate() {
            if *parent != NONE {
                prop_assert!(places[*parent as usize] < places[i]);
                prop_assert_eq!(tree.depth(i as u32), tree.depth(*parent) + 1);
            }
        }
        let cut = tree.flags.iter().any(|flags| flags & flag::CAUSES_LOOP != 0);
        for (cause, effect) in causes {
            let free = !is_above(&tree, cause, effect) && !is_above(&tree, effect, cause);
            if free && !cut {
                prop_assert!(places[cause as usize] < places[effect as usize]);
            }
        }
        // Depth first: what stands under a step follows it without a gap.
        for i in 0..order.len() as u32 {
            let under = (0..order.len() as u32).filter(|j| is_above(&tree, i, *j)).count();
            let at = places[i as usize];
            prop_assert!(order[at..at + under].iter().all(|j| is_above(&tree, i, *j)));
        }
    }
}

#[test]
fn clocks_break_ties_and_nothing_else() {
    // 0 and 1 are siblings; 1 is earlier by its clock, but it was caused by 0.
    let (order, _) = ordered(vec![NONE, NONE], &[], &[9, 3]);
    assert_eq!(order, [1, 0]);
    let (order, _) = ordered(vec![NONE, NONE], &[(0, 1)], &[9, 3]);
    assert_eq!(order, [0, 1]);
    // The cause lies under another branch: the whole branch comes first.
    let (order, _) = ordered(vec![NONE, NONE, 0, 1], &[(3, 2)], &[1, 9, 2, 10]);
    assert_eq!(order, [1, 3, 0, 2]);
}

#[test]
fn loops_are_cut_at_their_earliest_step() {
    // 0 -> 1 -> 2 -> 0, and 3 stands under 1.
    let (order, tree) = ordered(vec![1, 2, 0, 1], &[], &[0, 1, 2, 3]);
    assert_eq!(order, [0, 2, 1, 3]);
    assert_eq!(tree.flags[0] & flag::LOOP, flag::LOOP);
    let (order, tree) = ordered(vec![0], &[], &[0]);
    assert_eq!((order, tree.flags[0] & flag::LOOP), (vec![0], flag::LOOP));
    let (order, tree) = ordered(vec![NONE, NONE], &[(0, 1), (1, 0)], &[0, 1]);
    assert_eq!(order.len(), 2);
    assert!(tree.flags.iter().any(|flags| flags & flag::CAUSES_LOOP != 0));
}

/// As deep as it is long, and a cause for each step: neither the stack nor time runs out.
#[test]
fn depth_costs_little() {
    let count = 200_000u32;
    let mut parents = vec![NONE];
    parents.extend(0..count - 1);
    // A second chain, each step caused by one of the first.
    parents.push(NONE);
    parents.extend(count..2 * count - 1);
    let causes: Vec<(u32, u32)> = (0..count).map(|i| (i, count + i)).collect();
    let (order, tree) = ordered(parents, &causes, &vec![0; 2 * count as usize]);
    assert_eq!(order.len(), 2 * count as usize);
    assert_eq!(order[0], 0);
    assert_eq!(tree.depth(2 * count - 1), count - 1);
}
