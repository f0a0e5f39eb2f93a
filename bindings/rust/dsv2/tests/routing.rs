mod common;

use common::model;
use dsv2::{RoutingTokens, Status};
use std::sync::{Arc, Mutex};

#[test]
fn the_counts_are_those_of_the_tokens() {
    let mut session = model().session().unwrap();
    session.feed(&[0, 5, 9, 200, 201]).unwrap();
    session.feed(&[7]).unwrap();
    for (tokens, n) in [(RoutingTokens::All, 6), (RoutingTokens::Prompt, 5), (RoutingTokens::Generated, 1)] {
        let mut routing = session.routing(tokens).unwrap();
        assert_eq!(routing.info().unwrap().n_tokens, n);
        routing.merge(&session.routing(tokens).unwrap()).unwrap();
        let layers = routing.layers().unwrap();
        assert_eq!(layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [1, 2, 3]);
        for layer in &layers {
            assert_eq!(layer.experts.iter().map(|expert| expert.chosen).sum::<u64>(), 2 * 3 * n);
            assert!(layer.balance.max_over_mean >= 1.0);
        }
        assert_eq!(routing.experts(0).unwrap_err().status(), Status::Argument);
    }
    session.reset_routing().unwrap();
    assert_eq!(session.routing(RoutingTokens::All).unwrap().info().unwrap().n_tokens, 0);
}

#[test]
fn a_trace_tells_each_tokens_experts() {
    let mut session = model().session().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    session
        .set_routing_trace(Some(move |event: &dsv2::RoutingEvent<'_>| {
            kept.lock().unwrap().push((event.layer, event.position, event.experts.to_vec(), event.gates.to_vec()));
        }))
        .unwrap();
    session.feed(&[0, 5, 9]).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3 * 3);
    assert!(seen.iter().all(|(_, position, experts, gates)| *position < 3 && experts.len() == 3 && gates.len() == 3));
}

#[test]
fn a_panic_in_a_trace_is_an_error() {
    let mut session = model().session().unwrap();
    session.set_routing_trace(Some(|_: &dsv2::RoutingEvent<'_>| panic!("from the trace"))).unwrap();
    let error = session.feed(&common::long_prompt()).unwrap_err();
    assert!(error.message().contains("from the trace"));
    assert_eq!(session.length().unwrap(), 0);
    session.set_routing_trace(None::<fn(&dsv2::RoutingEvent<'_>)>).unwrap();
    session.feed(&[0]).unwrap();
}
