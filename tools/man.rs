//! Writes the man pages, of the program and of each subcommand, into a directory: `make man`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "target/man".into()));
    std::fs::create_dir_all(&directory)?;
    clap_mangen::generate_to(trimtab::cli::command(), &directory)?;
    println!("man -l {}", directory.join("trimtab.1").display());
    Ok(())
}
