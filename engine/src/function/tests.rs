use std::collections::BTreeMap;

use super::*;

fn call<R: DeserializeOwned>(
    registry: &Registry,
    values: &Values,
    name: &str,
    argument: &(impl Serialize + ?Sized),
) -> Result<R, FunctionError> {
    let token = CancelToken::new();
    let context = Context {
        token: &token,
        values,
        engine_id: 3,
        uuid: "u",
        host: "here",
        msg_id: "m",
        index: Some(7),
        granted: &Grant::default(),
        nodes: &[],
    };
    let mut out = b"before".to_vec();
    let result = registry.call(
        name,
        &context,
        &rmp_serde::to_vec_named(argument).unwrap(),
        &mut out,
    );
    assert!(out.starts_with(b"before"));
    if result.is_err() {
        assert_eq!(out.len(), 6, "an error leaves nothing behind");
    }
    result.map(|()| rmp_serde::from_slice(&out[6..]).unwrap())
}

#[derive(Debug, thiserror::Error)]
#[error("too odd: {0}")]
struct TooOdd(i64);

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.add("halve", |_, n: i64| {
        if n % 2 == 0 {
            Ok(n / 2)
        } else {
            Err(TooOdd(n))
        }
    });
    registry.add("boom", |_, (): ()| -> Result<(), String> {
        panic!("bang {}", 1)
    });
    registry.add("picky", |_, (): ()| {
        Err::<(), _>(FunctionError::unmet("no GPU"))
    });
    registry.add("where", |context, (): ()| {
        Ok::<_, String>((context.engine_id(), context.index()))
    });
    registry.add("total", |context, name: String| {
        let list: Vec<i64> = context.values().get(&name)?;
        Ok::<i64, FunctionError>(list.iter().sum())
    });
    registry
}

#[test]
fn typed_calls_and_their_errors() {
    let (registry, values) = (registry(), Values::default());
    assert_eq!(call::<i64>(&registry, &values, "halve", &8), Ok(4));
    let odd = call::<i64>(&registry, &values, "halve", &7).unwrap_err();
    assert_eq!(
        (odd.ename.as_str(), odd.evalue.as_str()),
        ("TooOdd", "too odd: 7")
    );
    assert_eq!(
        call::<i64>(&registry, &values, "halve", &"x")
            .unwrap_err()
            .ename,
        "TypeError"
    );
    let panic = call::<()>(&registry, &values, "boom", &()).unwrap_err();
    assert_eq!(
        (panic.ename.as_str(), panic.evalue.as_str()),
        ("Panic", "function \"boom\" panicked: bang 1")
    );
    assert_eq!(
        call::<()>(&registry, &values, "picky", &())
            .unwrap_err()
            .ename,
        "UnmetDependency"
    );
    assert_eq!(
        call::<()>(&registry, &values, "nothing", &())
            .unwrap_err()
            .ename,
        "UnmetDependency"
    );
    assert_eq!(
        call::<(u32, Option<u64>)>(&registry, &values, "where", &()),
        Ok((3, Some(7)))
    );
    assert_eq!(call::<f64>(&registry, &values, "sleep", &0.001), Ok(0.001));
    assert_eq!(
        call::<f64>(&registry, &values, "sleep", &-1.0)
            .unwrap_err()
            .ename,
        "ValueError"
    );
    assert_eq!(
        registry.names(),
        [
            "boom", "echo", "halve", "noop", "picky", "sleep", "total", "where"
        ]
    );
}

#[test]
fn values_are_pushed_and_pulled() {
    let (registry, values) = (registry(), Values::default());
    let pushed: BTreeMap<&str, Vec<i64>> = [("a", vec![1, 2, 3]), ("b", vec![-7; 20])].into();
    call::<()>(&registry, &values, "__push__", &pushed).unwrap();
    assert_eq!(
        call::<Vec<i64>>(&registry, &values, "__pull__", "a"),
        Ok(vec![1, 2, 3])
    );
    assert_eq!(
        call::<Vec<Vec<i64>>>(&registry, &values, "__pull__", &["b", "a"]),
        Ok(vec![vec![-7; 20], vec![1, 2, 3]])
    );
    assert_eq!(call::<i64>(&registry, &values, "total", "a"), Ok(6));
    let missing = call::<i64>(&registry, &values, "__pull__", &["a", "zz"]).unwrap_err();
    assert_eq!(
        (missing.ename.as_str(), missing.evalue.contains("zz")),
        ("NameError", true)
    );
    // Large maps have other headers; what is no map is refused whole.
    let many: BTreeMap<String, u32> = (0..70_000).map(|n| (format!("v{n}"), n)).collect();
    call::<()>(&registry, &values, "__push__", &many).unwrap();
    assert_eq!(
        call::<u32>(&registry, &values, "__pull__", "v69999"),
        Ok(69_999)
    );
    assert_eq!(
        call::<()>(&registry, &values, "__push__", &5)
            .unwrap_err()
            .ename,
        "TypeError"
    );
    assert_eq!(values.names().len(), 70_002);
    assert!(values.remove("a") && !values.remove("a"));
}

struct Count(u64);

impl Executor for Count {
    type Argument = u64;
    type Result = u64;

    fn call(&mut self, _: &Context<'_>, name: &str, by: u64) -> Result<u64, FunctionError> {
        self.0 += by;
        match name {
            "count" => Ok(self.0),
            name => panic!("no {name}"),
        }
    }
}

#[test]
fn an_executor_keeps_its_state_until_it_panics() {
    let mut registry = Registry::new();
    registry.add_executor(["count", "panic"], |_| Ok(Count(10)));
    registry.add_executor(["other"], |_| {
        Err::<Count, _>(FunctionError::unmet("no GPU"))
    });
    assert_eq!(
        registry.names(),
        ["count", "echo", "noop", "other", "panic", "sleep"]
    );
    let values = Values::default();
    let count = |name: &str, by: u64| call::<u64>(&registry, &values, name, &by);
    assert_eq!((count("count", 1), count("count", 2)), (Ok(11), Ok(13)));
    let panicked = count("panic", 0).unwrap_err();
    assert!(panicked.evalue.contains("no panic"), "{panicked}");
    assert_eq!(count("count", 1), Ok(11), "it is another one");
    assert_eq!(count("other", 1), Err(FunctionError::unmet("no GPU")));
    assert_eq!(count("count", 1), Ok(12));
}
