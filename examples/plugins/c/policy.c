/* Decides what may be tagged, cached and served here: repositories on a list, and images that say where they come from.
 *
 *   config: { allowed: [prefixes of repositories], annotation: the annotation an image must carry }
 *
 * What is answered is freed by the bindings, so it is a copy; everything else goes with the instance, which answers one call. */

#include <stdlib.h>
#include <string.h>

#include "admission_plugin.h"
#include "json.h"

typedef admission_plugin_string_t text;
typedef exports_gantry_plugin_admission_admission_request_t request;
typedef exports_gantry_plugin_admission_decision_t decision;
typedef exports_gantry_plugin_admission_plugin_error_t failure;

/* The configuration: an array's text, and a name. */
static struct json allowed;
static text annotation;

static text literal(const char *words) { return (text){(uint8_t *)words, strlen(words)}; }

/* A copy of words around a text, for answers. */
static text copied(const char *before, text middle, const char *after) {
  size_t head = strlen(before), tail = strlen(after);
  text whole = {malloc(head + middle.len + tail), head + middle.len + tail};
  memcpy(whole.ptr, before, head);
  memcpy(whole.ptr + head, middle.ptr, middle.len);
  memcpy(whole.ptr + head + middle.len, after, tail);
  return whole;
}

static text words(const char *written) { return copied(written, literal(""), ""); }

static struct json json_of(text written) {
  const char *at = (const char *)written.ptr;
  return (struct json){at, at + written.len};
}

static text string_of(struct json value) {
  text string = {NULL, 0};
  if (!json_is_string(value)) return string;
  string.ptr = malloc((size_t)(value.end - value.at));
  string.len = json_unescape(value, (char *)string.ptr);
  return string;
}

/* --- lifecycle --- */

typedef exports_gantry_plugin_lifecycle_config_issue_t issue;

static void add(exports_gantry_plugin_lifecycle_list_config_issue_t *issues, const char *pointer, const char *message) {
  if (issues->ptr == NULL) issues->ptr = calloc(2, sizeof(issue));
  issues->ptr[issues->len++] = (issue){words(pointer), words(message), true};
}

bool exports_gantry_plugin_lifecycle_configure(text *config, exports_gantry_plugin_lifecycle_list_config_issue_t *issues) {
  struct json object = json_of(*config), rest, value;
  memset(issues, 0, sizeof *issues);
  if (json_member(object, "allowed", 7, &value)) allowed = value;
  if (json_member(object, "annotation", 10, &value)) annotation = string_of(value);
  rest = allowed;
  if (!json_next(&rest, &value)) add(issues, "/allowed", "no repository is allowed");
  if (annotation.len == 0) add(issues, "/annotation", "no annotation is named");
  return issues->len == 0;
}

void exports_gantry_plugin_lifecycle_config_schema(text *schema) { *schema = words("{}"); }

bool exports_gantry_plugin_lifecycle_self_test(text *wrong) {
  (void)wrong;
  return true;
}

/* --- admission --- */

static void accept(decision *answer) {
  memset(answer, 0, sizeof *answer);
  answer->tag = EXPORTS_GANTRY_PLUGIN_ADMISSION_DECISION_ACCEPT;
}

static void reject(decision *answer, text repository, const char *code, const char *before, text named, const char *after) {
  static admission_plugin_tuple2_string_string_t fields[2];
  fields[0] = (admission_plugin_tuple2_string_string_t){literal("repository"), repository};
  fields[1] = (admission_plugin_tuple2_string_string_t){literal("reason"), literal(code)};
  text line = literal("refused");
  gantry_plugin_logging_log(GANTRY_PLUGIN_LOGGING_LEVEL_INFO, &line, &(admission_plugin_list_tuple2_string_string_t){fields, 2});
  memset(answer, 0, sizeof *answer);
  answer->tag = EXPORTS_GANTRY_PLUGIN_ADMISSION_DECISION_REJECT;
  answer->val.reject.code = GANTRY_PLUGIN_TYPES_DENIAL_CODE_DENIED;
  answer->val.reject.reason.code = words(code);
  answer->val.reject.reason.text = copied(before, named, after);
  answer->val.reject.message = copied(before, named, after);
}

static bool is_listed(text repository) {
  struct json rest = allowed, value;
  while (json_next(&rest, &value)) {
    text prefix = string_of(value);
    if (repository.len >= prefix.len && memcmp(repository.ptr, prefix.ptr, prefix.len) == 0) return true;
  }
  return false;
}

/* A document that the gateway does not read says nothing. */
static bool says_source(const gantry_plugin_types_document_t *document) {
  if (document->tag != GANTRY_PLUGIN_TYPES_DOCUMENT_MANIFEST) return false;
  const admission_plugin_list_tuple2_string_string_t *annotations = &document->val.manifest.annotations;
  for (size_t index = 0; index < annotations->len; index++) {
    text key = annotations->ptr[index].f0;
    if (key.len == annotation.len && memcmp(key.ptr, annotation.ptr, key.len) == 0) return annotations->ptr[index].f1.len > 0;
  }
  return false;
}

static bool is_of_a_good_image(request *asked, bool *good, failure *failed) {
  *good = false;
  for (size_t index = 0; index < asked->parents.len && !*good; index++) {
    gantry_plugin_registry_stored_manifest_t stored;
    gantry_plugin_registry_read_error_t error;
    if (!gantry_plugin_registry_get_manifest(&asked->repository, &asked->parents.ptr[index], &stored, &error)) {
      /* What cannot be read is no decision: the plugin fails, and the binding's `on_error` says what follows. */
      bool is_granted = error.tag != GANTRY_PLUGIN_REGISTRY_READ_ERROR_NOT_GRANTED;
      failed->tag = is_granted ? GANTRY_PLUGIN_TYPES_PLUGIN_ERROR_UPSTREAM : GANTRY_PLUGIN_TYPES_PLUGIN_ERROR_MISCONFIGURED;
      failed->val.upstream = words(is_granted ? "the manifest cannot be read" : "the binding does not grant reads of the registry");
      return false;
    }
    *good = says_source(&stored.document);
  }
  return true;
}

bool exports_gantry_plugin_admission_admit(request *asked, decision *answer, failure *failed) {
  bool good;
  switch (asked->change) {
    case EXPORTS_GANTRY_PLUGIN_ADMISSION_CHANGE_CREATE_TAG:
    case EXPORTS_GANTRY_PLUGIN_ADMISSION_CHANGE_MOVE_TAG:
    case EXPORTS_GANTRY_PLUGIN_ADMISSION_CHANGE_PUSH_BY_DIGEST:
    case EXPORTS_GANTRY_PLUGIN_ADMISSION_CHANGE_FILL:
      if (!is_listed(asked->repository)) {
        reject(answer, asked->repository, "repository-not-allowed", "", asked->repository, " is not on the list");
        return true;
      }
      good = asked->change == EXPORTS_GANTRY_PLUGIN_ADMISSION_CHANGE_FILL || (asked->document.is_some && says_source(&asked->document.val));
      break;
    case EXPORTS_GANTRY_PLUGIN_ADMISSION_CHANGE_SERVE_BLOB:
      if (!is_of_a_good_image(asked, &good, failed)) return false;
      break;
    default:
      answer->tag = EXPORTS_GANTRY_PLUGIN_ADMISSION_DECISION_ABSTAIN;
      return true;
  }
  if (good) {
    accept(answer);
  } else {
    reject(answer, asked->repository, "annotation-missing", "the image does not say ", annotation, "");
  }
  return true;
}
