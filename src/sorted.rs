//! Sorting of short lists. The standard library's sort is made for long ones, and takes 3 to 5 KB of the binary for
//! each type and order; this one takes 300 bytes.

/// `items` in the order that `before` gives; those that are equal in it stay as they came. Meant for a few thousand at
/// most: the work grows with the square of their number.
pub fn sorted<T>(items: impl IntoIterator<Item = T>, before: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let mut list: Vec<T> = Vec::new();
    for item in items {
        let place = list.partition_point(|other| !before(&item, other));
        list.insert(place, item);
    }
    list
}

/// `items` in their own order, each once.
pub fn distinct<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut list = sorted(items, |a, b| a < b);
    list.dedup();
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_items_stay_as_they_came() {
        let check = |items: &[(u8, char)], wanted: &str| {
            let sorted = sorted(items.iter().copied(), |a, b| a.0 < b.0);
            assert_eq!(sorted.iter().map(|item| item.1).collect::<String>(), wanted, "{items:?}");
        };
        check(&[], "");
        check(&[(1, 'a')], "a");
        check(&[(1, 'a'), (2, 'b'), (3, 'c')], "abc");
        check(&[(3, 'a'), (2, 'b'), (1, 'c')], "cba");
        check(&[(2, 'a'), (1, 'b'), (2, 'c'), (1, 'd'), (3, 'e'), (1, 'f')], "bdface");
    }

    #[test]
    fn distinct_items() {
        assert_eq!(distinct([3, 1, 3, 2, 1]), [1, 2, 3]);
        assert!(distinct(Vec::<u8>::new()).is_empty());
    }
}
