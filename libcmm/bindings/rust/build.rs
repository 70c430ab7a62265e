//! Finds libcmm: in the folder CMM_LIB_DIR, or where pkg-config says.
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=CMM_LIB_DIR");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    let folder = std::env::var("CMM_LIB_DIR").unwrap_or_else(|_| {
        let said = Command::new("pkg-config").args(["--variable=libdir", "cmm"]).output();
        let said = said.expect("set CMM_LIB_DIR to the folder of libcmm: there is no pkg-config");
        assert!(said.status.success(), "set CMM_LIB_DIR to the folder of libcmm: pkg-config does not know cmm");
        String::from_utf8_lossy(&said.stdout).trim().to_string()
    });
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=dylib=cmm");
    // For the tests and examples of this crate; a program of yours says itself where it finds its libraries.
    if cfg!(unix) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
