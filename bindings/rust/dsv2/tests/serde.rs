#![cfg(feature = "serde")]
mod common;

use dsv2::{LayerRouting, ModelInfo, RoutingTokens, Sampling};

#[test]
fn records_and_statistics_survive_json() {
    let model = common::model();
    let info = model.info();
    assert_eq!(serde_json::from_str::<ModelInfo>(&serde_json::to_string(&info).unwrap()).unwrap(), info);
    let sampling: Sampling = serde_json::from_str(r#"{"temperature": 0.5}"#).unwrap();
    assert_eq!(sampling, Sampling { temperature: 0.5, ..Sampling::default() });
    let mut session = model.session().unwrap();
    session.feed(&[0, 5, 9]).unwrap();
    let layers = session.routing(RoutingTokens::All).unwrap().layers().unwrap();
    assert_eq!(serde_json::from_str::<Vec<LayerRouting>>(&serde_json::to_string(&layers).unwrap()).unwrap(), layers);
}
