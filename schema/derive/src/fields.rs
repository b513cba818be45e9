//! The fields of a struct: a table, and a loop for each thing that is done with all of them.

use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Expr, Field, Fields};

use crate::doc;

/// Implements `Struct`.
pub(crate) fn derive(input: &DeriveInput) -> syn::Result<Tokens> {
    let Data::Struct(body) = &input.data else {
        return Err(syn::Error::new(input.ident.span(), "only a struct with named fields can be described"));
    };
    let fields: Vec<&Field> = match &body.fields {
        Fields::Named(named) => named.named.iter().collect(),
        Fields::Unit => Vec::new(),
        Fields::Unnamed(_) => return Err(syn::Error::new(input.ident.span(), "fields need names")),
    };
    let (name, doc) = (&input.ident, doc(&input.attrs, input.ident.span())?);
    let mut described = Vec::new();
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let (mut visits, mut idents) = (Vec::new(), Vec::new());
    for (index, field) in fields.iter().enumerate() {
        let ident = field.ident.as_ref().ok_or_else(|| syn::Error::new(field.span(), "fields need names"))?;
        let default = default(field)?;
        described.push(describe(field, default.as_ref())?);
        let or = default.map_or_else(|| quote!(|| None), |expr| quote!(|| Some(#expr)));
        let step = name_of(field);
        reads.push(quote!(let #ident = fields.take(#index, #or);));
        writes.push(quote!(fields.put(&Self::FIELDS.fields[#index], &self.#ident);));
        visits.push(quote!(::schema::attribute::Attribute::references(&self.#ident, &mut |reference| {
            visit(reference.inside(::schema::value::Step::Field(#step)))
        });));
        idents.push(ident);
    }
    Ok(quote! {
        impl ::schema::attribute::Struct for #name {
            const FIELDS: &'static ::schema::descriptor::Fields =
                &::schema::descriptor::Fields { doc: #doc, fields: &[#(#described),*] };

            fn read(fields: &mut ::schema::attribute::Reader<'_>) -> ::core::option::Option<Self> {
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

fn describe(field: &Field, default: Option<&Expr>) -> syn::Result<Tokens> {
    let name = name_of(field);
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
                ::schema::attribute::Attribute::to_value(&default)
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
fn name_of(field: &Field) -> String {
    let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
    name.trim_start_matches("r#").replace('_', "-")
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
