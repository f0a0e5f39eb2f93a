//! Finds libdsv2 with pkg-config.

fn main() {
    let version = env!("CARGO_PKG_VERSION");
    if let Err(failure) = pkg_config::Config::new().atleast_version(version).probe("dsv2") {
        eprintln!("libdsv2 {version} or later is needed: build and install it, or let PKG_CONFIG_PATH name where dsv2.pc is.");
        eprintln!("{failure}");
        std::process::exit(1);
    }
}
