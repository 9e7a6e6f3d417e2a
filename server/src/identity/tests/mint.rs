//! An issuer of tokens, good ones and bad ones.

use std::{io::Write, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use crate::identity::{jwt::JwtTable, *};

/// The moment of all tests, in seconds since 1970.
pub(super) const NOW: i64 = 1_800_000_000;
pub(super) const ISSUER: &str = "https://id.example";

/// Keys of the three kinds.
pub(super) struct Mint {
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    rsa: RsaKeyPair,
}

impl Mint {
    pub(super) fn new() -> Self {
        let random = SystemRandom::new();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let ed = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        let pem = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/jwt/rsa.pem"));
        let rsa = PrivateKeyDer::from_pem_file(pem).expect("a key");
        Mint {
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random).expect("a key"),
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("a key"),
            rsa: RsaKeyPair::from_pkcs8(rsa.secret_der()).expect("a key"),
        }
    }

    /// What it publishes: `ec`, `ed` and `rsa`.
    pub(super) fn key_set(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        let rsa = RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        json!({"keys": [
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": text(self.ed.public_key().as_ref())},
            {"kty": "RSA", "kid": "rsa", "alg": "RS256", "use": "sig",
             "n": text(&rsa.n), "e": text(&rsa.e)},
            {"kty": "oct", "kid": "hmac", "alg": "HS256", "k": text(&[7; 32])},
        ]})
    }

    /// The modulus, which everybody knows.
    pub(super) fn modulus(&self) -> Vec<u8> {
        RsaPublicKeyComponents::from(self.rsa.public_key()).n
    }

    pub(super) fn point(&self) -> Vec<u8> {
        self.ec.public_key().as_ref().to_vec()
    }

    /// Signs any two parts with the key of a name.
    pub(super) fn sign(&self, key: &str, header: &Value, claims: &Value) -> String {
        self.sign_text(key, &header.to_string(), &claims.to_string())
    }

    /// The same of texts that need not be JSON.
    pub(super) fn sign_text(&self, key: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", text(header.as_bytes()), text(claims.as_bytes()));
        let random = SystemRandom::new();
        let signature = match key {
            "ec" => self.ec.sign(&random, signed.as_bytes()).expect("signed").as_ref().to_vec(),
            "ed" => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
            _ => {
                let mut signature = vec![0; self.rsa.public_key().modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).expect("signed");
                signature
            }
        };
        format!("{signed}.{}", text(&signature))
    }

    /// A token as it should be.
    pub(super) fn good(&self, claims: &Value) -> String {
        self.sign("ec", &json!({"alg": "ES256", "kid": "ec", "typ": "JWT"}), claims)
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Claims of a member of tenant `a`.
pub(super) fn claims(more: Value) -> Value {
    let mut all = json!({
        "iss": ISSUER, "aud": "weir", "sub": "u", "tenant": "a", "exp": NOW + 600, "nbf": NOW - 5, "iat": NOW - 5
    });
    for (name, value) in more.as_object().expect("an object") {
        match value.is_null() {
            true => drop(all.as_object_mut().expect("an object").remove(name)),
            false => all[name] = value.clone(),
        }
    }
    all
}

/// Where a mint's keys are published, as a table of the configuration.
pub(super) fn table(mint: &Mint, folder: &Path) -> JwtTable {
    let path = folder.join("keys.json");
    let mut file = std::fs::File::create(&path).expect("created");
    file.write_all(mint.key_set().to_string().as_bytes()).expect("written");
    let text = format!(
        "issuer = \"{ISSUER}\"\naudiences = [\"weir\"]\njwks_file = {path:?}\nrole_claim = \"role\"\n\
         scopes_claim = \"scope\"\nmodels_claim = \"models\"\n\
         roles = {{ boss = \"tenant_admin\", root = \"operator\", ear = \"auditor\" }}\n"
    );
    toml::from_str(&text).expect("a table")
}

/// A tenant that may do anything.
pub(super) fn tenant(number: u32, id: &str) -> TenantRow {
    TenantRow {
        id: id.into(),
        number: weir_runtime::TenantId(number),
        standing: Standing::Active,
        models: None,
        ip_allow: Vec::new(),
        domain: None,
        account: Account::default(),
    }
}

/// A key with all that its role allows.
pub(super) fn key(pepper: &Pepper, tenant: u32, role: Role) -> (ApiKey, KeyRow) {
    let key = ApiKey::random().expect("key");
    let row = KeyRow {
        id: key.id(),
        tenant: weir_runtime::TenantId(tenant),
        name: "k".into(),
        hash: key.hash(pepper),
        role,
        scopes: role.scopes(),
        models: None,
        expires_us: None,
        created_us: 0,
        created_by: "x".into(),
        revoked_us: None,
        last_used_us: None,
        replaces: None,
    };
    (key, row)
}
