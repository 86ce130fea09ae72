# What one types daily: `just` lists it. (https://just.systems; every line works without it, too.)

# This list
default:
    @just --list --unsorted

# What the compiler says, as fast as it can
check:
    cargo check --workspace --all-targets

# Formatted, and without a warning
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# The debug programs
build:
    cargo build --workspace --bins

# Some tests by name, on the built programs: just test faults::
test NAME: build
    cargo nextest run --workspace -E 'test({{NAME}})'

# All parts of the tests, or some: just parts chaos soak
parts *PARTS:
    scripts/test {{PARTS}}

# What a change must pass
ci:
    .ci/run

# From nothing to the first results
quickstart:
    scripts/quickstart

# The documentation, in target/docs
docs:
    scripts/docs

# The same, built again as pages change
docs-serve:
    scripts/docs --serve

# The examples of some pages, run: just docs-run docs/tasks/files.md
docs-run *PAGES: build
    tests/docs/run {{PAGES}}

# How fast it is, beside its peers
bench *PARTS:
    cargo build --release --workspace --bins
    scripts/bench {{PARTS}}

# Ten million mutations a target, or fewer: just fuzz 100000
fuzz COUNT="10000000":
    scripts/fuzz {{COUNT}}

# Everything that a release consists of, in target/dist
release:
    scripts/release

# The checklist of a release
release-check:
    scripts/release --check
