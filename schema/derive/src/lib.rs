//! Derives that describe: a struct becomes a table of its fields and loops over them, an enum a table of its
//! words.
//!
//! The macros emit data and calls, never logic. A field or word without a doc comment and an attribute that
//! is not known are compile errors, because the comments are the reference.

mod choice;
mod fields;

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{ToTokens, quote};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, DeriveInput, Expr, ExprLit, Lit, LitStr, Meta, Token, parenthesized, parse_macro_input,
};

/// Derives `schema::attribute::Describe` for a class of objects.
///
/// On the struct: `#[describe(word = "dns", plural = "dns", within = "network", namespace = "names",
/// named_by("alias"))]`, `unnamed` for a class with one object at most; on a field: `#[field(default =
/// EXPRESSION)]`, an expression of the field's type.
#[proc_macro_derive(Describe, attributes(describe, field))]
pub fn describe(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), class)
}

/// Derives `schema::attribute::Struct` and `Attribute` for a struct inside a field of another one; its fields
/// take the same attribute.
#[proc_macro_derive(Record, attributes(field))]
pub fn record(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), nested)
}

/// Derives `schema::attribute::Choice` and `Attribute` for an enum without data: its variants in kebab case
/// are the words.
#[proc_macro_derive(Choice)]
pub fn choice(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), choice::derive)
}

fn expand(input: &DeriveInput, derive: fn(&DeriveInput) -> syn::Result<Tokens>) -> TokenStream {
    derive(input).unwrap_or_else(syn::Error::into_compile_error).into()
}

fn class(input: &DeriveInput) -> syn::Result<Tokens> {
    let fields = fields::derive(input)?;
    let name = &input.ident;
    let Header { word, plural, named, within, namespace, named_by } = Header::parse(input)?;
    Ok(quote! {
        #fields

        impl ::schema::attribute::Describe for #name {
            const WORD: &'static str = #word;
            const DESCRIPTOR: &'static ::schema::descriptor::Descriptor = &::schema::descriptor::Descriptor {
                word: #word,
                plural: #plural,
                named: #named,
                within: #within,
                namespace: #namespace,
                named_by: &[#named_by],
                fields: <Self as ::schema::attribute::Struct>::FIELDS,
            };
        }
    })
}

fn nested(input: &DeriveInput) -> syn::Result<Tokens> {
    let fields = fields::derive(input)?;
    let name = &input.ident;
    Ok(quote! {
        #fields

        impl ::schema::attribute::Attribute for #name {
            const TYPE: ::schema::descriptor::Type =
                ::schema::descriptor::Type::Record(<Self as ::schema::attribute::Struct>::FIELDS);

            fn from_value(
                value: &::schema::value::Value,
                found: &mut ::std::vec::Vec<::schema::attribute::Mismatch>,
            ) -> ::core::option::Option<Self> {
                ::schema::attribute::record_from_value(value, found)
            }

            fn to_value(&self) -> ::schema::value::Value {
                ::schema::attribute::write(self)
            }

            fn references(&self, visit: &mut dyn FnMut(::schema::descriptor::Reference<'_>)) {
                ::schema::attribute::Struct::references(self, visit);
            }
        }
    })
}

struct Header {
    word: LitStr,
    plural: LitStr,
    named: bool,
    within: Tokens,
    namespace: Tokens,
    named_by: Tokens,
}

impl Header {
    fn parse(input: &DeriveInput) -> syn::Result<Self> {
        let (mut word, mut plural) = (None, None);
        let (mut within, mut namespace) = (quote!(None), quote!(None));
        let (mut named, mut named_by) = (true, Tokens::new());
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("describe")) {
            attribute.parse_nested_meta(|meta| {
                let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
                match key.as_str() {
                    "word" => word = Some(meta.value()?.parse()?),
                    "plural" => plural = Some(meta.value()?.parse()?),
                    "unnamed" => named = false,
                    "within" => {
                        let holder: LitStr = meta.value()?.parse()?;
                        within = quote!(Some(#holder));
                    }
                    "namespace" => {
                        let shared: LitStr = meta.value()?.parse()?;
                        namespace = quote!(Some(#shared));
                    }
                    "named_by" => {
                        let words;
                        parenthesized!(words in meta.input);
                        named_by =
                            Punctuated::<LitStr, Token![,]>::parse_terminated(&words)?.to_token_stream();
                    }
                    _ => {
                        return Err(
                            meta.error("known here are: word, plural, unnamed, within, namespace, named_by")
                        );
                    }
                }
                Ok(())
            })?;
        }
        let missing =
            |what| syn::Error::new(input.ident.span(), format!("#[describe({what} = \"..\")] is missing"));
        Ok(Self {
            word: word.ok_or_else(|| missing("word"))?,
            plural: plural.ok_or_else(|| missing("plural"))?,
            named,
            within,
            namespace,
            named_by,
        })
    }
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
