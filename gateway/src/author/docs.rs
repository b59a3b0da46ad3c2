//! The contract as Markdown: every interface with its functions, types and doc comments.
//!
//! Owns the form of `wit/README.md`, which a test compares with what this renders.

use std::fmt::Write as _;

use anyhow::Context as _;
use wit_parser::{
    Docs, Function, FunctionKind, Handle, Interface, PackageId, Resolve, SourceMap, Type, TypeDef,
    TypeDefKind, TypeOwner,
};

use super::template;

/// What stands before the interfaces.
const HEAD: &str = "# The contract: `gantry:plugin`

What the gateway asks a plugin, and what a plugin may ask of the gateway. This file is what `gantry plugin docs` prints: it is made from the
`.wit` files beside it, and a test keeps it so. A plugin exports `lifecycle` and one or more hooks; everything else is an import, and what a
binding does not grant is answered with the import's own error.

";

/// Renders the contract.
///
/// # Errors
/// The embedded contract does not parse.
pub fn markdown() -> anyhow::Result<String> {
    let (resolve, package) = contract()?;
    let page = Page { resolve: &resolve };
    let package = resolve.packages.get(package).context("no package")?;
    let mut interfaces: Vec<&Interface> = package
        .interfaces
        .values()
        .filter_map(|id| resolve.interfaces.get(*id))
        .collect();
    let hooks = [
        "admission",
        "authorizer",
        "authenticator",
        "principals",
        "events",
        "scanner",
        "management",
    ];
    let rank = |name: &str| match name {
        "lifecycle" => 0,
        _ if hooks.contains(&name) => 1,
        "types" => 2,
        _ => 3,
    };
    interfaces.sort_by_key(|interface| {
        let name = interface.name.clone().unwrap_or_default();
        (rank(&name), name)
    });
    let mut out = HEAD.to_owned();
    page.contents(&interfaces, &rank, &mut out)?;
    for interface in interfaces {
        page.interface(interface, &mut out)?;
    }
    Ok(out)
}

/// The embedded contract.
///
/// # Errors
/// It does not parse.
pub(super) fn contract() -> anyhow::Result<(Resolve, PackageId)> {
    let mut files = SourceMap::default();
    for (path, text) in template::contract() {
        files.push_str(path, text);
    }
    let group = files
        .parse()
        .map_err(|(files, error)| anyhow::anyhow!("{}", error.render(&files)))?;
    let mut resolve = Resolve::default();
    let package = resolve.push_group(group)?;
    Ok((resolve, package))
}

struct Page<'a> {
    resolve: &'a Resolve,
}

impl Page<'_> {
    fn contents(
        &self,
        interfaces: &[&Interface],
        rank: &dyn Fn(&str) -> usize,
        out: &mut String,
    ) -> anyhow::Result<()> {
        let titles = [
            "Every plugin exports",
            "Hooks a plugin may export",
            "Shared words",
            "Imports",
        ];
        for (index, title) in titles.iter().enumerate() {
            let names: Vec<String> = interfaces
                .iter()
                .filter_map(|interface| interface.name.as_deref())
                .filter(|name| rank(name) == index)
                .map(|name| format!("[{name}](#{name})"))
                .collect();
            writeln!(out, "- {title}: {}", names.join(", "))?;
        }
        out.push('\n');
        Ok(())
    }

    fn interface(&self, interface: &Interface, out: &mut String) -> anyhow::Result<()> {
        let name = interface.name.as_deref().unwrap_or_default();
        writeln!(out, "## {name}\n")?;
        paragraph(&interface.docs, out);
        for function in interface.functions.values() {
            if function.kind.resource().is_none() {
                self.function(function, out)?;
            }
        }
        for id in interface.types.values() {
            let definition = self
                .resolve
                .types
                .get(*id)
                .context("a type without a definition")?;
            self.definition(definition, interface, out)?;
        }
        Ok(())
    }

    fn function(&self, function: &Function, out: &mut String) -> anyhow::Result<()> {
        writeln!(out, "#### `{}`\n", self.signature(function))?;
        paragraph(&function.docs, out);
        Ok(())
    }

    fn signature(&self, function: &Function) -> String {
        let is_method = matches!(
            function.kind,
            FunctionKind::Method(_) | FunctionKind::AsyncMethod(_)
        );
        let parameters: Vec<String> = function
            .params
            .iter()
            .skip(usize::from(is_method))
            .map(|parameter| format!("{}: {}", parameter.name, self.name(&parameter.ty)))
            .collect();
        let result = function
            .result
            .as_ref()
            .map(|result| format!(" -> {}", self.name(result)))
            .unwrap_or_default();
        format!(
            "{}: func({}){result}",
            function.item_name(),
            parameters.join(", ")
        )
    }

    fn definition(
        &self,
        definition: &TypeDef,
        interface: &Interface,
        out: &mut String,
    ) -> anyhow::Result<()> {
        let name = definition.name.as_deref().unwrap_or_default();
        let rows: Vec<(String, &Docs)> = match &definition.kind {
            TypeDefKind::Record(record) => record
                .fields
                .iter()
                .map(|field| {
                    (
                        format!("{}: {}", field.name, self.name(&field.ty)),
                        &field.docs,
                    )
                })
                .collect(),
            TypeDefKind::Variant(variant) => variant
                .cases
                .iter()
                .map(|case| {
                    let payload = case.ty.as_ref().map(|ty| format!("({})", self.name(ty)));
                    (
                        format!("{}{}", case.name, payload.unwrap_or_default()),
                        &case.docs,
                    )
                })
                .collect(),
            TypeDefKind::Enum(words) => words
                .cases
                .iter()
                .map(|case| (case.name.clone(), &case.docs))
                .collect(),
            TypeDefKind::Flags(flags) => flags
                .flags
                .iter()
                .map(|flag| (flag.name.clone(), &flag.docs))
                .collect(),
            TypeDefKind::Resource => Vec::new(),
            // A `use`, which the interface it comes from explains.
            TypeDefKind::Type(Type::Id(_)) if definition.docs.contents.is_none() => return Ok(()),
            TypeDefKind::Type(ty) => {
                writeln!(out, "#### type `{name}` = `{}`\n", self.name(ty))?;
                paragraph(&definition.docs, out);
                return Ok(());
            }
            other => {
                writeln!(out, "#### type `{name}` = `{}`\n", self.kind(other))?;
                paragraph(&definition.docs, out);
                return Ok(());
            }
        };
        writeln!(out, "#### {} `{name}`\n", definition.kind.as_str())?;
        paragraph(&definition.docs, out);
        for (row, docs) in &rows {
            let docs = docs.contents.as_deref().unwrap_or_default();
            let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(out, "- `{row}`: {docs}")?;
        }
        if !rows.is_empty() {
            out.push('\n');
        }
        self.methods(definition, interface, out)
    }

    fn methods(
        &self,
        definition: &TypeDef,
        interface: &Interface,
        out: &mut String,
    ) -> anyhow::Result<()> {
        for function in interface.functions.values() {
            let owner = function
                .kind
                .resource()
                .and_then(|id| self.resolve.types.get(id));
            if owner.is_some_and(|owner| owner.name == definition.name) {
                self.function(function, out)?;
            }
        }
        Ok(())
    }

    fn name(&self, ty: &Type) -> String {
        let Type::Id(id) = ty else {
            return primitive(ty).to_owned();
        };
        let Some(definition) = self.resolve.types.get(*id) else {
            return "?".to_owned();
        };
        match (&definition.name, &definition.owner) {
            (Some(name), TypeOwner::Interface(_) | TypeOwner::World(_)) => name.clone(),
            _ => self.kind(&definition.kind),
        }
    }

    fn kind(&self, kind: &TypeDefKind) -> String {
        let optional = |ty: &Option<Type>| {
            ty.as_ref()
                .map_or_else(|| "_".to_owned(), |ty| self.name(ty))
        };
        match kind {
            TypeDefKind::Type(ty) => self.name(ty),
            TypeDefKind::Option(ty) => format!("option<{}>", self.name(ty)),
            TypeDefKind::List(ty) => format!("list<{}>", self.name(ty)),
            TypeDefKind::Result(result) if result.ok.is_none() && result.err.is_none() => {
                "result".to_owned()
            }
            TypeDefKind::Result(result) if result.err.is_none() => {
                format!("result<{}>", optional(&result.ok))
            }
            TypeDefKind::Result(result) => format!(
                "result<{}, {}>",
                optional(&result.ok),
                optional(&result.err)
            ),
            TypeDefKind::Tuple(tuple) => {
                let types: Vec<String> = tuple.types.iter().map(|ty| self.name(ty)).collect();
                format!("tuple<{}>", types.join(", "))
            }
            TypeDefKind::Handle(Handle::Own(id) | Handle::Borrow(id)) => self.name(&Type::Id(*id)),
            other => other.as_str().to_owned(),
        }
    }
}

fn primitive(ty: &Type) -> &'static str {
    match ty {
        Type::Bool => "bool",
        Type::U8 => "u8",
        Type::U16 => "u16",
        Type::U32 => "u32",
        Type::U64 => "u64",
        Type::S8 => "s8",
        Type::S16 => "s16",
        Type::S32 => "s32",
        Type::S64 => "s64",
        Type::F32 => "f32",
        Type::F64 => "f64",
        Type::Char => "char",
        Type::String => "string",
        Type::ErrorContext => "error-context",
        Type::Id(_) => "?",
    }
}

fn paragraph(docs: &Docs, out: &mut String) {
    if let Some(text) = &docs.contents {
        out.push_str(text.trim());
        out.push_str("\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_readme_is_what_the_contract_says() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit/README.md");
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            written,
            markdown().unwrap(),
            "run: cargo run -p gantry -- plugin docs > wit/README.md"
        );
    }

    #[test]
    fn every_interface_and_type_has_a_word_of_its_own() {
        let text = markdown().unwrap();
        let mut last = "";
        for line in text.lines().filter(|line| !line.is_empty()) {
            assert!(
                !(line.starts_with('#') && last.starts_with("####") && !last.contains("resource")),
                "nothing is said about {last}"
            );
            last = line;
        }
        assert!(text.contains("- `accept(accepted)`: May happen"));
    }
}
