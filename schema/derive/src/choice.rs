//! The variants of an enum: a table of words.

use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::{Data, DeriveInput, Fields};

use crate::doc;

/// Implements `Choice` and `Attribute`.
pub(crate) fn derive(input: &DeriveInput) -> syn::Result<Tokens> {
    let Data::Enum(body) = &input.data else {
        return Err(syn::Error::new(input.ident.span(), "only an enum can be a choice"));
    };
    let name = &input.ident;
    let (mut words, mut variants) = (Vec::new(), Vec::new());
    for variant in &body.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(syn::Error::new(variant.ident.span(), "a word of a choice holds nothing"));
        }
        let (word, doc) = (kebab(&variant.ident.to_string()), doc(&variant.attrs, variant.ident.span())?);
        words.push(quote!(::schema::descriptor::Word { word: #word, doc: #doc }));
        variants.push(&variant.ident);
    }
    let indices = 0..variants.len();
    Ok(quote! {
        impl ::schema::attribute::Choice for #name {
            const WORDS: &'static [::schema::descriptor::Word] = &[#(#words),*];
            const ALL: &'static [Self] = &[#(Self::#variants),*];

            fn index(self) -> usize {
                match self { #(Self::#variants => #indices,)* }
            }
        }

        impl ::schema::attribute::Attribute for #name {
            const TYPE: ::schema::descriptor::Type =
                ::schema::descriptor::Type::Choice(<Self as ::schema::attribute::Choice>::WORDS);

            fn from_value(
                value: &::schema::value::Value,
                found: &mut ::std::vec::Vec<::schema::attribute::Mismatch>,
            ) -> ::core::option::Option<Self> {
                ::schema::attribute::choice_from_value(value, found)
            }

            fn to_value(&self) -> ::schema::value::Value {
                ::schema::value::Value::text(::schema::attribute::Choice::word(*self))
            }
        }
    })
}

/// `AllowAll` as `allow-all`.
fn kebab(name: &str) -> String {
    let mut word = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.extend(c.to_lowercase());
    }
    word
}
