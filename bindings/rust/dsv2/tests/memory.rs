//! Apart from the other tests, whose threads use memory at the same time.
mod common;

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn ten_thousand_opens_forks_and_closes_leave_memory_flat() {
    let model = common::model();
    let rounds = |n| {
        for i in 0..n {
            let mut session = model.session().unwrap();
            if i % 10 == 0 {
                session.feed(&[i % 384]).unwrap();
            }
            let copy = session.fork(session.length().unwrap()).unwrap();
            assert_eq!(copy.logits().is_ok(), i % 10 == 0);
        }
    };
    rounds(1000);
    let before = resident_bytes();
    rounds(10_000);
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(model.memory().unwrap().pages_in_use, 0);
    assert!(grown < 10_000 * 64, "{} bytes more after 10,000 rounds", grown);
}
