//! Lists that borrow from one batch after the other, in the same memory.

/// An empty list in the memory of `used`, of which the items may borrow from something else.
///
/// Collecting what comes from a list's own items reuses its allocation (`std::vec`, in-place collection); the test sees
/// that it does.
pub fn recycle<T, U>(mut used: Vec<T>) -> Vec<U> {
    used.clear();
    used.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_the_same() {
        let mut list: Vec<&[u8]> = Vec::with_capacity(64);
        for round in 0..3u8 {
            let text = [round; 4];
            let before = (list.as_ptr() as usize, list.capacity());
            let mut borrowing: Vec<&[u8]> = recycle(list);
            borrowing.extend(text.chunks(2));
            assert_eq!((borrowing.as_ptr() as usize, borrowing.capacity()), before);
            list = recycle(borrowing);
            assert!(list.is_empty());
        }
    }
}
