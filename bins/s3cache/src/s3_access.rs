//! Resolves the S3 service, its endpoint, region and profile, from flags, environment and the AWS configuration files.
//!
//! Both the cache key and the S3 client are made from the result, so that they cannot disagree about the object. Reads
//! the environment and files only: a hit opens no socket.

mod files;

use aws_config::profile::ProfileSet;
use aws_runtime::env_config::property::PropertiesKey;
use hostkit::{Exit, Failure};
use url::{Host, Url};

use crate::environment::EnvironmentVariables;
use crate::named_file::NamedFile;
pub(crate) use files::ProfileFiles;

/// The longest chain of `source_profile`.
const PROFILE_CHAIN_LIMIT: usize = 16;

/// The settings of s3cache itself, which override those of the AWS tools.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct S3Overrides<'a> {
    pub endpoint_url: Option<&'a str>,
    pub region: Option<&'a str>,
    pub profile: Option<&'a str>,
    /// The file and line that name the profile.
    pub profile_place: Option<&'a str>,
    pub path_style: bool,
    /// Certificate authorities (PEM).
    pub ca_file: Option<&'a NamedFile>,
}

/// A way to sign in that needs a browser, and the AWS tools to refresh the credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignInMethod {
    /// IAM Identity Center.
    Sso,
    /// `aws login`.
    Login,
}

impl std::fmt::Display for SignInMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sso => "SSO",
            Self::Login => "`aws login`",
        })
    }
}

/// How to reach S3.
#[derive(Debug, Clone)]
pub(crate) struct S3Access {
    /// The normalized endpoint; `None` for AWS.
    pub endpoint: Option<String>,
    /// The region, if configured; otherwise instance metadata has it.
    pub region: Option<String>,
    /// Whether the bucket is part of the path.
    pub path_style: bool,
    /// Certificate authorities to trust instead of the system's (PEM).
    pub ca_file: Option<NamedFile>,
    /// Files with tokens for credentials, when the environment has no keys.
    pub token_files: Vec<NamedFile>,
    pub profile: String,
    /// How the profile signs in, when the environment has no keys and s3cache cannot sign in that way.
    pub sign_in: Option<SignInMethod>,
    /// The AWS configuration files.
    pub files: ProfileFiles,
}

impl S3Access {
    /// Resolves each value: s3cache's settings, then AWS variables, then the profile.
    ///
    /// # Errors
    /// A file or a value in it cannot be used, or the profile does not exist (exit 78).
    pub(crate) fn resolve(
        own: S3Overrides<'_>,
        env: &EnvironmentVariables,
        files: ProfileFiles,
    ) -> Result<Self, Failure> {
        let name = own
            .profile
            .or_else(|| env.get("AWS_PROFILE"))
            .or_else(|| env.get("AWS_DEFAULT_PROFILE"))
            .unwrap_or("default");
        let profile = files.parse(name)?;
        if name != "default" && profile.get_profile(name).is_none() {
            let wrong = match (own.profile_place, own.profile) {
                (Some(_), _) => "its name here",
                (None, Some(_)) => "--profile",
                (None, None) => "AWS_PROFILE",
            };
            let config = files.config.path.display();
            let failure = Failure::new(Exit::CONFIG, format!("there is no AWS profile {name:?}"))
                .remedy(format!("add it to {config}, or correct {wrong}"));
            return Err(match own.profile_place {
                Some(place) => failure.at(place),
                None => failure,
            });
        }
        let setting = |key: &str| profile.get(key).filter(|value| !value.is_empty());
        let endpoint = endpoint(own, env, &profile)?;
        let style = setting("s3").and_then(|nested| nested_value(nested, "addressing_style"));
        let path_style = own.path_style
            || style == Some("path")
            || endpoint
                .as_deref()
                .is_some_and(|endpoint| needs_path_style(endpoint, style));
        Ok(Self {
            path_style,
            region: own
                .region
                .or_else(|| env.get("AWS_REGION"))
                .or_else(|| env.get("AWS_DEFAULT_REGION"))
                .or_else(|| setting("region"))
                .map(str::to_owned),
            ca_file: own
                .ca_file
                .cloned()
                .or_else(|| of_variable(env, "AWS_CA_BUNDLE"))
                .or_else(|| of_profile("ca_bundle", name, setting("ca_bundle"))),
            endpoint,
            token_files: match env.get("AWS_ACCESS_KEY_ID") {
                Some(_) => Vec::new(),
                None => token_files(env, &profile, name),
            },
            sign_in: match env.get("AWS_ACCESS_KEY_ID") {
                Some(_) => None,
                None => sign_in(&profile, name),
            },
            profile: name.to_owned(),
            files,
        })
    }

    /// The endpoint in the form that the SDK joins with a bucket: a path must end in a slash.
    #[must_use]
    pub(crate) fn sdk_endpoint(&self) -> Option<String> {
        let endpoint = self.endpoint.as_deref()?;
        let has_path = Url::parse(endpoint).is_ok_and(|url| url.path() != "/");
        Some(format!("{endpoint}{}", if has_path { "/" } else { "" }))
    }

    /// Distinguishes equal buckets of different services in the cache: the endpoint, or the partition of AWS. Never
    /// empty: earlier releases filed objects of AWS, and those of endpoints that only a profile names, under an empty
    /// service.
    #[must_use]
    pub(crate) fn service(&self) -> &str {
        let region = self.region.as_deref();
        (self.endpoint.as_deref()).unwrap_or_else(|| region.map_or("aws", partition))
    }
}

/// The first endpoint that is configured, normalized.
fn endpoint(
    own: S3Overrides<'_>,
    env: &EnvironmentVariables,
    profile: &ProfileSet,
) -> Result<Option<String>, Failure> {
    if let Some(url) = own.endpoint_url.filter(|url| !url.is_empty()) {
        return normal_endpoint("endpoint-url", url).map(Some);
    }
    let ignored = "ignore_configured_endpoint_urls";
    let ignore = match env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") {
        Some(value) => boolean("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", value)?,
        None => match profile.get(ignored) {
            Some(value) => boolean(ignored, value)?,
            None => false,
        },
    };
    if ignore {
        return Ok(None);
    }
    let services = profile.get("services").and_then(|services| {
        let key = PropertiesKey::builder()
            .section_key("services")
            .section_name(services)
            .property_name("s3")
            .sub_property_name("endpoint_url")
            .build()
            .ok()?;
        profile.other_sections().get(&key).map(String::as_str)
    });
    let named = [
        ("AWS_ENDPOINT_URL_S3", env.get("AWS_ENDPOINT_URL_S3")),
        ("AWS_ENDPOINT_URL", env.get("AWS_ENDPOINT_URL")),
        ("endpoint_url of the services section", services),
        ("endpoint_url of the profile", profile.get("endpoint_url")),
    ];
    named
        .into_iter()
        .find_map(|(setting, url)| Some((setting, url.filter(|url| !url.is_empty())?)))
        .map(|(setting, url)| normal_endpoint(setting, url))
        .transpose()
}

/// Checks the URL of a service.
///
/// # Errors
/// It is invalid (exit 78).
pub(crate) fn check_endpoint(text: &str) -> Result<(), Failure> {
    normal_endpoint("endpoint-url", text).map(|_| ())
}

/// The URL with scheme and host in lower case, without a default port and trailing slashes.
fn normal_endpoint(setting: &str, text: &str) -> Result<String, Failure> {
    let wrong = |why: &str, remedy: String| {
        let shown = hostkit::mask::mask_url(text);
        Failure::new(Exit::CONFIG, format!("invalid {setting} {shown:?}: {why}")).remedy(remedy)
    };
    let text = text.trim();
    if !text.contains("://") {
        // A password may precede the host.
        let host = text.rsplit('@').next().unwrap_or_default();
        return Err(Failure::new(
            Exit::CONFIG,
            format!("invalid {setting}: {host:?} has no scheme"),
        )
        .remedy(format!("write https://{host} or http://{host}")));
    }
    let example = || "write https://host or http://host:port".to_owned();
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string(), example()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("unknown scheme", example()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "credentials in an endpoint are not supported",
            "put them into a profile".to_owned(),
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("an endpoint has no query", example()));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// An IP address cannot carry the bucket as a subdomain; `localhost` can, but its subdomains rarely resolve.
fn needs_path_style(endpoint: &str, style: Option<&str>) -> bool {
    Url::parse(endpoint).is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost" && style != Some("virtual"),
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
        None => false,
    })
}

fn of_variable(env: &EnvironmentVariables, name: &str) -> Option<NamedFile> {
    env.get(name).map(|path| NamedFile::new(path, name))
}

fn of_profile(key: &str, profile: &str, path: Option<&str>) -> Option<NamedFile> {
    path.map(|path| NamedFile::new(path, format!("{key} of the AWS profile {profile:?}")))
}

/// The files from which the SDK would read a token, without a size limit.
fn token_files<'a>(
    env: &EnvironmentVariables,
    profiles: &'a ProfileSet,
    name: &'a str,
) -> Vec<NamedFile> {
    const KEY: &str = "web_identity_token_file";
    let mut files: Vec<_> = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ]
    .into_iter()
    .filter_map(|variable| of_variable(env, variable))
    .collect();
    let mut next = Some(name);
    for _ in 0..PROFILE_CHAIN_LIMIT {
        let Some((name, profile)) = next.and_then(|name| Some((name, profiles.get_profile(name)?)))
        else {
            break;
        };
        files.extend(of_profile(KEY, name, profile.get(KEY)));
        next = profile.get("source_profile");
    }
    files
}

/// How a profile, or the one at the end of its chain, signs in. The order is that of the SDK.
fn sign_in(profiles: &ProfileSet, name: &str) -> Option<SignInMethod> {
    let (mut name, mut left) = (name, PROFILE_CHAIN_LIMIT);
    loop {
        let profile = profiles.get_profile(name)?;
        let has = |keys: &[&str]| keys.iter().any(|key| profile.get(key).is_some());
        match profile.get("source_profile") {
            Some(source) if source != name && has(&["role_arn"]) && left > 0 => {
                (name, left) = (source, left - 1);
            }
            _ if has(&["credential_source", "web_identity_token_file"]) => return None,
            _ if has(&["sso_session", "sso_start_url", "sso_account_id"]) => {
                return Some(SignInMethod::Sso);
            }
            _ => return has(&["login_session"]).then_some(SignInMethod::Login),
        }
    }
}

/// A value of a nested section, which the parser leaves as lines.
fn nested_value<'a>(nested: &'a str, key: &str) -> Option<&'a str> {
    nested.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        // A comment may follow a blank.
        (name.trim().eq_ignore_ascii_case(key)).then(|| value.split_whitespace().next())?
    })
}

fn boolean(setting: &str, value: &str) -> Result<bool, Failure> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Failure::new(
            Exit::CONFIG,
            format!("invalid {setting} {value:?}: expected true or false"),
        )
        .remedy("correct it")),
    }
}

/// The partition of AWS that a region belongs to. Each has its own namespace of buckets.
fn partition(region: &str) -> &'static str {
    [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ]
    .into_iter()
    .find(|(prefix, _)| region.starts_with(prefix))
    .map_or("aws", |(_, partition)| partition)
}

#[cfg(test)]
mod tests {
    use super::files::ProfileFile;
    use super::*;

    const PROFILES: &str = "\
[default]
region = eu-west-1
[profile plain]
region = cn-north-1
endpoint_url = https://Profile.org:443/
ca_bundle = /profile.pem
[profile service]
endpoint_url = https://profile.org
services = local
s3 =
    max_concurrent_requests = 20
    addressing_style = path # behind a proxy
[profile virtual]
endpoint_url = http://localhost:9000
s3 =
    addressing_style = virtual
[profile ignore]
endpoint_url = https://profile.org
ignore_configured_endpoint_urls = true
[profile people]
sso_session = corp
sso_account_id = 123456789012
[profile role]
role_arn = arn:aws:iam::123456789012:role/fetch
source_profile = people
[profile console]
login_session = arn:aws:iam::123456789012:user/me
[profile loop]
role_arn = arn:aws:iam::123456789012:role/fetch
source_profile = pool
[profile pool]
role_arn = arn:aws:iam::123456789012:role/fetch
source_profile = loop
[services local]
s3 =
    endpoint_url = http://127.0.0.1:9000
dynamodb =
    endpoint_url = http://127.0.0.1:8000
";

    /// Pairs `name=value` separated by blanks.
    fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
        text.split_whitespace()
            .filter_map(|pair| pair.split_once('='))
    }

    fn resolve(flags: &str, variables: &str) -> Result<S3Access, Failure> {
        let flag = |name: &str| pairs(flags).find(|(flag, _)| *flag == name);
        let flag = |name: &str| flag(name).map(|(_, value)| value);
        let ca_file = flag("ca-file").map(|path| NamedFile::new(path, "--ca-file"));
        let own = S3Overrides {
            endpoint_url: flag("endpoint-url"),
            region: flag("region"),
            profile: flag("profile"),
            profile_place: flag("profile-place"),
            path_style: flag("path-style").is_some(),
            ca_file: ca_file.as_ref(),
        };
        let variables = pairs(variables).map(|(name, value)| (name.to_owned(), value.to_owned()));
        let file = |path: &str, text: &str| ProfileFile {
            path: path.into(),
            text: text.to_owned(),
        };
        let files = ProfileFiles {
            config: file("config", PROFILES),
            credentials: file("credentials", "[keys]\naws_access_key_id = a\n"),
        };
        S3Access::resolve(own, &variables.collect(), files)
    }

    #[test]
    fn setting_is_taken_from_first_layer_that_has_it() {
        // Flags, variables, then endpoint, region, style, CA file, and the service in the cache key.
        let table = "\
            | | - eu-west-1 host - aws
            | AWS_PROFILE= | - eu-west-1 host - aws
            profile=keys | | - - host - aws
            profile=plain | | https://profile.org cn-north-1 host /profile.pem https://profile.org
            | AWS_PROFILE=plain | https://profile.org cn-north-1 host /profile.pem https://profile.org
            | AWS_DEFAULT_PROFILE=plain AWS_PROFILE=keys | - - host - aws
            profile=service | | http://127.0.0.1:9000 - path - http://127.0.0.1:9000
            profile=service endpoint-url=http://f.org | | http://f.org - path - http://f.org
            profile=virtual | | http://localhost:9000 - host - http://localhost:9000
            profile=plain | AWS_ENDPOINT_URL=http://e.org AWS_DEFAULT_REGION=r1 AWS_CA_BUNDLE=/e.pem | http://e.org r1 host /e.pem http://e.org
            profile=service | AWS_ENDPOINT_URL_S3=http://e3.org AWS_ENDPOINT_URL=http://e.org | http://e3.org - path - http://e3.org
            | AWS_REGION=r2 AWS_DEFAULT_REGION=r1 | - r2 host - aws
            profile=plain endpoint-url=http://[::1]:9000/ region=r3 ca-file=/f.pem | AWS_ENDPOINT_URL_S3=http://e3.org AWS_REGION=r2 AWS_CA_BUNDLE=/e.pem | http://[::1]:9000 r3 path /f.pem http://[::1]:9000
            profile=plain endpoint-url=http://localhost:80 | | http://localhost cn-north-1 path /profile.pem http://localhost
            profile=ignore | | - - host - aws
            profile=ignore | AWS_ENDPOINT_URL_S3=http://e3.org | - - host - aws
            profile=ignore | AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=false | https://profile.org - host - https://profile.org
            profile=plain | AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=TRUE AWS_ENDPOINT_URL=http://e.org | - cn-north-1 host /profile.pem aws-cn
            profile=ignore endpoint-url=HTTP://Flag.org/s3// | | http://flag.org/s3 - host - http://flag.org/s3
            | AWS_REGION=us-gov-west-1 | - us-gov-west-1 host - aws-us-gov
            path-style=true | AWS_REGION=ap-south-2 | - ap-south-2 path - aws";
        for row in table.lines() {
            let [flags, variables, expected]: [&str; 3] =
                row.split('|').collect::<Vec<_>>().try_into().unwrap();
            let access = resolve(flags, variables).unwrap();
            let found = [
                access.endpoint.as_deref(),
                access.region.as_deref(),
                Some(if access.path_style { "path" } else { "host" }),
                access.ca_file.as_ref().and_then(|file| file.path.to_str()),
                Some(access.service()),
            ];
            let found = found.map(|value| value.unwrap_or("-")).join(" ");
            assert_eq!(found, expected.trim(), "{row}");
        }
    }

    #[test]
    fn browser_sign_in_is_detected_unless_environment_has_keys() {
        for (flags, variables, expected) in [
            ("", "", None),
            ("profile=people", "", Some(SignInMethod::Sso)),
            ("profile=role", "", Some(SignInMethod::Sso)),
            ("profile=console", "", Some(SignInMethod::Login)),
            ("profile=loop", "", None),
            ("profile=console", "AWS_ACCESS_KEY_ID=id", None),
        ] {
            let access = resolve(flags, variables).unwrap();
            assert_eq!(access.sign_in, expected, "{flags} {variables}");
        }
    }

    #[test]
    fn invalid_setting_is_named_with_remedy() {
        // Flags, variables, then the error.
        let table = "\
            endpoint-url=minio:9000 | | endpoint-url scheme http://minio:9000
            | AWS_ENDPOINT_URL_S3=127.0.0.1:9000 | AWS_ENDPOINT_URL_S3 http://127.0.0.1:9000
            | AWS_ENDPOINT_URL=s3://host | AWS_ENDPOINT_URL scheme
            endpoint-url=http:// | | endpoint-url http://host:port
            endpoint-url=http://me:hunter2@h | | credentials
            endpoint-url=me:hunter2@h:9000 | | scheme https://h:9000
            endpoint-url=http://h/?x=hunter2 | | query
            profile=none | | \"none\" config --profile
            profile=none profile-place=c.yaml:3 | | c.yaml:3: \"none\" here
            | AWS_PROFILE=none | \"none\" AWS_PROFILE
            | AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=yes | AWS_IGNORE_CONFIGURED_ENDPOINT_URLS true";
        for row in table.lines() {
            let [flags, variables, expected]: [&str; 3] =
                row.split('|').collect::<Vec<_>>().try_into().unwrap();
            let failure = resolve(flags, variables).unwrap_err();
            let text = failure.to_string();
            assert_eq!(failure.exit(), Exit::CONFIG, "{text}");
            assert!(
                expected.split_whitespace().all(|word| text.contains(word)),
                "{text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
