//! A `ValidatingAdmissionPolicy`, read from YAML and evaluated as the API server does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::extractors::This;
use cel::objects::Key;
use cel::{Context, Env, ExecutionError, Program, Value as Cel};
use serde_json::Value;

use super::request::Request;

/// A policy.
pub struct Policy {
    pub name: String,
    rules: Vec<Value>,
    pub conditions: Vec<Expression>,
    variables: Vec<Expression>,
    pub validations: Vec<Expression>,
}

/// An expression, and what it is called: a condition's or variable's name, or a validation's message.
pub struct Expression {
    pub title: String,
    pub text: String,
    program: Program,
}

/// What a policy says of a request.
#[derive(Debug)]
pub enum Verdict {
    /// It is none of the policy's business: a resource or operation it does not name.
    Unmatched,
    /// This match condition is false.
    Skipped(usize),
    /// What each validation says; an error counts as no (`failurePolicy: Fail`), and is told.
    Judged(Vec<Result<bool, String>>),
}

impl Policy {
    /// Reads one, and compiles its expressions.
    pub fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let list = |path: &Value, title: &str| -> Vec<Expression> {
            let of = |item: &Value| Expression::compile(&item[title], &item["expression"]);
            path.as_array().map(|items| items.iter().map(of).collect()).unwrap_or_default()
        };
        assert_eq!(spec["failurePolicy"], "Fail", "an error in an expression must refuse");
        Self {
            name: object["metadata"]["name"].as_str().unwrap().to_owned(),
            rules: spec["matchConstraints"]["resourceRules"].as_array().unwrap().clone(),
            conditions: list(&spec["matchConditions"], "name"),
            variables: list(&spec["variables"], "name"),
            validations: list(&spec["validations"], "message"),
        }
    }

    /// Evaluates it.
    pub fn judge(&self, request: &Request) -> Verdict {
        let names = |list: &Value, word: &str| list.as_array().unwrap().iter().any(|item| item == word);
        let matches = |rule: &Value| {
            names(&rule["operations"], request.operation) && names(&rule["resources"], &request.resource())
        };
        if !self.rules.iter().any(matches) {
            return Verdict::Unmatched;
        }
        let mut context = context(request);
        for (index, condition) in self.conditions.iter().enumerate() {
            let holds = condition.truth(&context);
            if !holds.unwrap_or_else(|error| panic!("{}: {}: {error}", self.name, condition.title)) {
                return Verdict::Skipped(index);
            }
        }
        // Lazily evaluated by the API server; here what cannot be evaluated is missing, and an error where it is used.
        let mut variables = BTreeMap::new();
        for variable in &self.variables {
            if let Ok(value) = variable.program.execute(&context) {
                variables.insert(Key::from(variable.title.clone()), value);
            }
            let map =
                Cel::Map(variables.clone().into_iter().collect::<std::collections::HashMap<_, _>>().into());
            context.add_variable_from_value("variables", map);
        }
        Verdict::Judged(self.validations.iter().map(|validation| validation.truth(&context)).collect())
    }
}

impl Expression {
    fn compile(title: &Value, text: &Value) -> Self {
        let text = text.as_str().unwrap().to_owned();
        let program = Env::stdlib().compile(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        Self { title: title.as_str().expect("each expression has a title").to_owned(), text, program }
    }

    fn truth(&self, context: &Context<'_, '_>) -> Result<bool, String> {
        match self.program.execute(context) {
            Ok(Cel::Bool(truth)) => Ok(truth),
            Ok(other) => Err(format!("{other:?} is not a truth value")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The variables that the API server gives to expressions, and its authorizer.
fn context(request: &Request) -> Context<'static, 'static> {
    let mut context = Context::with_env(Arc::new(Env::stdlib()));
    context.add_variable("request", request.variable()).unwrap();
    context.add_variable("object", &request.object).unwrap();
    context.add_variable("oldObject", &request.old_object).unwrap();
    // authorizer.group(G).resource(R)[.name(N)].check(VERB).allowed(): each step adds a word to a list.
    context.add_variable("authorizer", Vec::<String>::new()).unwrap();
    for step in ["group", "resource", "name"] {
        context
            .add_function(step, move |This(asked): This<Cel>, word: Arc<String>| add(asked, step, &word))
            .unwrap();
    }
    let user = request.user.clone();
    let check = move |This(asked): This<Cel>, verb: Arc<String>| -> Result<Cel, ExecutionError> {
        let mut words = words(&asked)?;
        words.push(format!("verb={verb}"));
        Ok(Cel::Bool(user.may(&words)))
    };
    context.add_function("check", check).unwrap();
    context.add_function("allowed", |This(decision): This<bool>| decision).unwrap();
    context
}

fn add(asked: Cel, step: &str, word: &str) -> Result<Cel, ExecutionError> {
    let mut words = words(&asked)?;
    words.push(format!("{step}={word}"));
    Ok(Cel::List(Arc::new(words.into_iter().map(Cel::from).collect())))
}

fn words(asked: &Cel) -> Result<Vec<String>, ExecutionError> {
    let Cel::List(list) = asked else {
        return Err(ExecutionError::function_error("authorizer", "is asked something else"));
    };
    Ok(list
        .iter()
        .filter_map(|word| if let Cel::String(word) = word { Some(word.to_string()) } else { None })
        .collect())
}
