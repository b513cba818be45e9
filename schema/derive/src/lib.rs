//! `#[derive(Describe)]`: turns a struct into its descriptor and two loops over its fields.
//!
//! The macro emits data and calls, never logic. A field without a doc comment and an attribute that is not known are
//! compile errors, because the comments are the reference.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Expr, ExprLit, Field, Fields, Lit, LitStr, Meta, parse_macro_input};

/// Derives `schema::attribute::Describe`.
///
/// On the struct: `#[describe(word = "dns", plural = "dns", within = "network", namespace = "names")]`; on a field:
/// `#[field(default = EXPRESSION)]`, an expression of the field's type.
#[proc_macro_derive(Describe, attributes(describe, field))]
pub fn describe(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

fn expand(input: &DeriveInput) -> syn::Result<Tokens> {
    let Data::Struct(body) = &input.data else {
        return Err(syn::Error::new(input.ident.span(), "only a struct with named fields can be described"));
    };
    let fields: Vec<&Field> = match &body.fields {
        Fields::Named(named) => named.named.iter().collect(),
        Fields::Unit => Vec::new(),
        Fields::Unnamed(_) => return Err(syn::Error::new(input.ident.span(), "fields need names")),
    };
    let (name, doc) = (&input.ident, doc(&input.attrs, input.ident.span())?);
    let Header { word, plural, within, namespace } = Header::parse(input)?;
    let mut described = Vec::new();
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let (mut visits, mut idents) = (Vec::new(), Vec::new());
    for (index, field) in fields.iter().enumerate() {
        let ident = field.ident.as_ref().ok_or_else(|| syn::Error::new(field.span(), "fields need names"))?;
        let default = default(field)?;
        described.push(describe_field(field, default.as_ref())?);
        let or = default.map_or_else(|| quote!(|| None), |expr| quote!(|| Some(#expr)));
        reads.push(quote!(let #ident = fields.take(#index, #or);));
        writes.push(quote!(fields.put(&Self::DESCRIPTOR.fields[#index], &self.#ident);));
        let step = field_name(field);
        visits.push(quote!(::schema::attribute::Attribute::references(&self.#ident, &mut |reference| {
            visit(reference.inside(::schema::value::Step::Field(#step)))
        });));
        idents.push(ident);
    }
    Ok(quote! {
        impl ::schema::attribute::Describe for #name {
            const WORD: &'static str = #word;
            const DESCRIPTOR: &'static ::schema::descriptor::Descriptor = &::schema::descriptor::Descriptor {
                word: #word,
                plural: #plural,
                within: #within,
                namespace: #namespace,
                doc: #doc,
                fields: &[#(#described),*],
            };

            fn read(fields: &mut ::schema::attribute::Reader<'_>) -> Option<Self> {
                let _ = &fields;
                #(#reads)*
                Some(Self { #(#idents: #idents?),* })
            }

            fn write(&self, fields: &mut ::schema::attribute::Writer) {
                let _ = &fields;
                #(#writes)*
            }

            fn references(&self, visit: &mut dyn FnMut(::schema::descriptor::Reference<'_>)) {
                let _ = &visit;
                #(#visits)*
            }
        }
    })
}

fn describe_field(field: &Field, default: Option<&Expr>) -> syn::Result<Tokens> {
    let name = field_name(field);
    let (doc, ty) = (doc(&field.attrs, field.span())?, &field.ty);
    let required = match default {
        Some(_) => quote!(false),
        None => quote!(<#ty as ::schema::attribute::Attribute>::REQUIRED),
    };
    let default = default.map_or_else(
        || quote!(None),
        |expr| {
            quote!(Some(|| {
                let default: #ty = #expr;
                ::schema::attribute::Attribute::to_value(&default).expect("a default is a value")
            }))
        },
    );
    Ok(quote! {
        ::schema::descriptor::Field {
            name: #name,
            doc: #doc,
            ty: <#ty as ::schema::attribute::Attribute>::TYPE,
            required: #required,
            default: #default,
        }
    })
}

/// The name of a field in every language.
fn field_name(field: &Field) -> String {
    let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
    name.trim_start_matches("r#").replace('_', "-")
}

struct Header {
    word: LitStr,
    plural: LitStr,
    within: Tokens,
    namespace: Tokens,
}

impl Header {
    fn parse(input: &DeriveInput) -> syn::Result<Self> {
        let (mut word, mut plural) = (None, None);
        let (mut within, mut namespace) = (quote!(None), quote!(None));
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("describe")) {
            attribute.parse_nested_meta(|meta| {
                let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
                match key.as_str() {
                    "word" => word = Some(meta.value()?.parse()?),
                    "plural" => plural = Some(meta.value()?.parse()?),
                    "within" => {
                        let holder: LitStr = meta.value()?.parse()?;
                        within = quote!(Some(#holder));
                    }
                    "namespace" => {
                        let shared: LitStr = meta.value()?.parse()?;
                        namespace = quote!(Some(#shared));
                    }
                    _ => return Err(meta.error("known here are: word, plural, within, namespace")),
                }
                Ok(())
            })?;
        }
        let missing = |what| syn::Error::new(input.ident.span(), format!("#[describe({what} = \"..\")] is missing"));
        Ok(Self {
            word: word.ok_or_else(|| missing("word"))?,
            plural: plural.ok_or_else(|| missing("plural"))?,
            within,
            namespace,
        })
    }
}

fn default(field: &Field) -> syn::Result<Option<Expr>> {
    let mut default = None;
    for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("field")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("default") {
                return Err(meta.error("known here is: default"));
            }
            default = Some(meta.value()?.parse()?);
            Ok(())
        })?;
    }
    Ok(default)
}

/// The doc comment as one text, its lines joined, its paragraphs kept.
fn doc(attributes: &[Attribute], at: proc_macro2::Span) -> syn::Result<String> {
    let mut doc = String::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        let Meta::NameValue(pair) = &attribute.meta else { continue };
        let Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) = &pair.value else { continue };
        let line = line.value();
        match line.trim() {
            "" => doc.push_str("\n\n"),
            line if doc.is_empty() || doc.ends_with('\n') => doc.push_str(line),
            line => {
                doc.push(' ');
                doc.push_str(line);
            }
        }
    }
    if doc.trim().is_empty() {
        return Err(syn::Error::new(at, "a doc comment is missing: it becomes the reference for users"));
    }
    Ok(doc.trim().to_owned())
}
